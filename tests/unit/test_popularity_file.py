"""Popularity data is read from any URL, packed or not, and anything else is refused with its place."""

import gzip
import http.server
import json
import lzma
import threading

import fsspec
import pytest

from nixery_core import _documents
from nixery_core._documents import zstd
from nixery_core.errors import InvalidDocument, ObjectNotFound, StorageError
from nixery_core.layering.popularity import Popularity
from nixery_core.layering.popularity_file import load_popularity, parse_popularity, popularity_bytes
from nixery_core.model.storepath import StorePath

DATA = popularity_bytes(Popularity({"glibc": 70000, "curl": 12}), {"roots": 3})


@pytest.fixture
def web(tmp_path):
    """A web server of the files in tmp_path."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def do_GET(self):
            if self.path in ("/broken", "/private"):
                self.send_error(503 if self.path == "/broken" else 403)
            elif self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"glibc": 7}')
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestLoading:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstd.compress])
    def test_every_packing(self, tmp_path, pack):
        """JSON is read as it is, or from gzip, xz and Zstandard, whatever the file is called."""
        (tmp_path / "data").write_bytes(pack(DATA))
        assert load_popularity(str(tmp_path / "data")).counts == {"glibc": 70000, "curl": 12}

    def test_every_kind_of_url(self, tmp_path, web):
        """A path, a file URL, a web address and a URL of fsspec give the same data, and so the same digest."""
        (tmp_path / "popularity.json").write_bytes(DATA)
        with fsspec.open("memory://popularity-file/data.json", "wb") as file:
            file.write(DATA)
        urls = [
            str(tmp_path / "popularity.json"),
            f"file://{tmp_path}/popularity.json",
            f"{web}/popularity.json",
            "memory://popularity-file/data.json",
        ]
        assert {load_popularity(url).digest for url in urls} == {Popularity({"glibc": 70000, "curl": 12}).digest}

    def test_counts_alone(self, tmp_path):
        """A plain object of counts is enough; a package may be called counts."""
        assert parse_popularity(b'{"counts": 3, "glibc": 9}').counts == {"counts": 3, "glibc": 9}

    def test_the_written_form_is_stable(self):
        """Equal data gives equal bytes, whatever the order."""
        assert popularity_bytes(Popularity({"curl": 12, "glibc": 70000}), {"roots": 3}) == DATA
        assert json.loads(DATA)["metadata"] == {"roots": 3}


class TestNixeryFiles:
    """What Nixery's own popcount writes: the names of store paths, and how many others refer to each."""

    # as its program makes it of a channel: compact, with versions, outputs apart
    DATA = json.dumps(
        {
            "glibc-2.38-44": 61000,
            "glibc-2.38-44-bin": 300,
            "gcc-13.2.0-lib": 40000,
            "bash-5.2p26": 9000,
            "openssl-3.0.13": 7000,
            "openssl-1.1.1w": 20,
            "python3-3.11.8-env": 30,
            "unit-script": 2,
        },
        separators=(",", ":"),
    ).encode()

    def test_versions_are_taken_away(self):
        """Each package has one entry by name, with the largest count of its versions and outputs."""
        assert parse_popularity(self.DATA).counts == {
            "glibc": 61000,
            "gcc": 40000,
            "bash": 9000,
            "openssl": 7000,
            "python3-env": 30,
            "unit-script": 2,
        }

    def test_packages_are_found_after_an_update(self):
        """Other versions of the packages have the popularity of the file, which Nixery itself would miss."""
        popularity = parse_popularity(self.DATA)
        for name in ("glibc-2.40-66", "glibc-2.40-66-bin", "glibc-2.38-44"):
            assert popularity.of(StorePath("0" * 32, name)) == 61000

    def test_other_files_keep_their_names(self):
        """A few names that look like versions are names, and in our own format all are."""
        names = {"gtk-3": 7, "glibc": 9, "bash": 2}
        assert parse_popularity(json.dumps(names).encode()).counts == names
        ours = Popularity({"gtk-3": 7})
        assert parse_popularity(popularity_bytes(ours)) == ours


class TestRefusing:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "is not JSON"),
            (b"[" * 100_000, "is not JSON"),
            (b"[]", "is a JSON object, not list"),
            (b'{"glibc": -1}', "not 'glibc': -1"),
            (b'{"glibc": "7"}', "not 'glibc': '7'"),
            (b'{"counts": {"a": 1}}', "format version None"),
            (b'{"counts": {"a": 1}, "format_version": true}', "format version True"),
            (b'{"counts": {"a": 1}, "format_version": 2}', "format version 2, not 1"),
        ],
    )
    def test_other_documents(self, data, message):
        """The error names the place and what is wrong there."""
        with pytest.raises(InvalidDocument, match=message) as caught:
            parse_popularity(data, where="here")
        assert caught.value.message.startswith("here")
        assert caught.value.hint

    def test_missing_files(self, tmp_path, web):
        """Nothing there is an ObjectNotFound, on disk and on the web; other answers are StorageErrors."""
        for url in (str(tmp_path / "no"), f"{web}/no", "memory://popularity-file/no"):
            with pytest.raises(ObjectNotFound, match="there is nothing at"):
                load_popularity(url)
        with pytest.raises(StorageError, match="answered 503") as caught:
            load_popularity(f"{web}/broken")
        assert "later" in caught.value.hint
        with pytest.raises(StorageError, match="answered 403") as caught:
            load_popularity(f"{web}/private")
        assert "rights" in caught.value.hint

    def test_a_broken_connection(self, web):
        """An answer that ends before its promised length is an error, not a shorter document."""
        with pytest.raises(StorageError, match="cannot be read"):
            load_popularity(f"{web}/short")

    def test_errors_of_other_libraries(self, monkeypatch):
        """Whatever a storage library raises arrives as a StorageError."""

        class NoCredentials(Exception):
            pass

        def fail(*_, **__):
            raise NoCredentials("who are you?")

        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
        with pytest.raises(StorageError, match="cannot be read: who are you"):
            load_popularity("memory://popularity-file/x")

    def test_unreachable_places(self, tmp_path):
        """A closed port, a folder and an unknown scheme are StorageErrors that name the URL without secrets."""
        for url in ("http://user:secret@127.0.0.1:1/x", str(tmp_path), "nosuchscheme://x"):
            with pytest.raises(StorageError) as caught:
                load_popularity(url)
            assert "secret" not in str(caught.value)
            assert "cannot be read" in str(caught.value)

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
    def test_damaged_packing(self, tmp_path, pack):
        """A packed file that is cut short or changed is refused, not read as far as it goes."""
        packed = pack(json.dumps({str(i): i for i in range(5000)}).encode())
        (tmp_path / "data").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(InvalidDocument, match="cannot be unpacked"):
            load_popularity(str(tmp_path / "data"))

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress])
    def test_a_bomb(self, tmp_path, monkeypatch, pack):
        """What unpacks to more than the limit is refused before it fills the memory, also in several streams."""
        monkeypatch.setattr(_documents, "MOST_BYTES", 1 << 20)
        for pieces in (1, 3):
            (tmp_path / "bomb").write_bytes(pack(bytes(1_000_000)) * pieces + pack(bytes(100_000)))
            with pytest.raises(InvalidDocument, match="more than 1 MiB"):
                load_popularity(str(tmp_path / "bomb"))

    def test_a_greedy_packing(self, tmp_path, monkeypatch):
        """A packed file that makes its reader take much memory beside the document is refused."""
        wide = b"\x28\xb5\x2f\xfd\x00\xa0" + bytes(40)  # the header asks for a window of 1 GiB
        monkeypatch.setattr(_documents, "_MOST_WINDOW", 4 << 20)
        for packed in (wide, lzma.compress(b"{}")):  # xz takes 8 MiB by default
            (tmp_path / "data").write_bytes(packed)
            with pytest.raises(InvalidDocument, match=r"cannot be unpacked: .*[Mm]emory"):
                load_popularity(str(tmp_path / "data"))

    def test_several_streams(self, tmp_path):
        """Packed files may be joined, and xz pads them, as their own tools allow."""
        half = len(DATA) // 2
        for pack in (gzip.compress, lzma.compress, zstd.compress):
            padding = bytes(4) if pack is lzma.compress else b""
            (tmp_path / "data").write_bytes(pack(DATA[:half]) + padding + pack(DATA[half:]) + padding)
            assert load_popularity(str(tmp_path / "data")).counts == {"glibc": 70000, "curl": 12}

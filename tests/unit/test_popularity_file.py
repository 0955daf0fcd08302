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

DATA = popularity_bytes(Popularity({"glibc": 70000, "curl": 12}), {"roots": 3})


@pytest.fixture
def web(tmp_path):
    """A web server of the files in tmp_path."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def do_GET(self):
            if self.path == "/broken":
                self.send_error(503)
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
        with pytest.raises(StorageError, match="answered 503"):
            load_popularity(f"{web}/broken")

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

    def test_a_bomb(self, tmp_path, monkeypatch):
        """What unpacks to more than the limit is refused before it fills the memory."""
        monkeypatch.setattr(_documents, "MOST_BYTES", 1 << 20)
        (tmp_path / "bomb").write_bytes(gzip.compress(bytes(5 << 20)))
        with pytest.raises(InvalidDocument, match="more than 1 MiB"):
            load_popularity(str(tmp_path / "bomb"))

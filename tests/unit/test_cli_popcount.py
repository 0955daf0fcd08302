"""The command popcount, over HTTP and files, without Nix."""

import gzip
import io
import json
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from nixery_core.cli import main
from nixery_core.cli.walk_progress import walk_progress
from nixery_core.layering.popularity import Popularity
from nixery_core.layering.popularity_file import load_popularity
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.popcount.walk import WalkProgress
from nixery_core.served import ServedCounter
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.binary_cache import write_cache
from nixery_core.testing.file_server import Answer, FileServer
from nixery_core.testing.memory_store import MemoryStore

LIBC, BASH, GIT = (
    StorePath(letter * 32, name) for letter, name in zip("abc", ("glibc-2", "bash-5", "git-2"), strict=True)
)


@pytest.fixture
def cache(tmp_path):
    """A folder that is a binary cache of three paths, with a list of two of them."""
    folder = tmp_path / "cache"
    store = MemoryStore({path: {"name": path.name.encode()} for path in (LIBC, BASH, GIT)})
    write_cache(folder, store, references={BASH: [LIBC, BASH], GIT: [BASH]})
    (folder / "store-paths").write_text(f"{BASH}\n{GIT}\n")
    return folder


def popcount(*words):
    return main(["popcount", "--progress", "none", *map(str, words)])


class TestCounting:
    def test_over_files_and_http(self, cache, tmp_path, capsys):
        """The same cache gives the same bytes, wherever it is; the report says what was counted."""
        assert popcount(cache / "store-paths", "--cache", cache, "--output", tmp_path / "a.json", "--json") == 0
        report = json.loads(capsys.readouterr().out)
        with FileServer(cache) as server:
            words = (f"{server.url}/store-paths", "--cache", server.url, "--output", tmp_path / "b.json")
            assert popcount(*words, "--connections", 2) == 0
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
        popularity = load_popularity(str(tmp_path / "a.json"))
        assert popularity == Popularity({"bash": 2, "git": 1, "glibc": 2})
        assert json.loads((tmp_path / "a.json").read_bytes())["metadata"] == {
            "missing": 0,
            "root_packages": 2,
            "store_paths": 3,
        }
        assert report["digest"] == popularity.digest
        assert (report["root_packages"], report["store_paths"], report["names"]) == (2, 3, 3)
        # the state is gone with the need for it
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json", "cache"]

    def test_to_standard_output_and_packed(self, cache, tmp_path, capfdbinary):
        """- is standard output; a name packs the file."""
        assert popcount(GIT, "--cache", cache, "--output", "-") == 0
        document = capfdbinary.readouterr().out
        assert json.loads(document)["counts"] == {"bash": 1, "git": 1, "glibc": 1}
        assert popcount(GIT, "--cache", cache, "--output", tmp_path / "x.json.gz") == 0
        assert gzip.decompress((tmp_path / "x.json.gz").read_bytes()) == document

    def test_missing_paths(self, cache, tmp_path, capsys):
        """They are an error that lists them and writes nothing; --allow-missing leaves them out and says so."""
        (cache / f"{LIBC.hash}.narinfo").unlink()
        words = (cache / "store-paths", "--cache", cache, "--output", tmp_path / "a.json")
        assert popcount(*words) == 10
        assert f"{LIBC}, which {BASH} refers to" in capsys.readouterr().err
        assert not (tmp_path / "a.json").exists()
        assert popcount(*words, "--allow-missing", "--json") == 0
        shown = capsys.readouterr()
        assert str(LIBC) in shown.err
        assert json.loads(shown.out)["missing_paths"] == [str(LIBC)]
        assert load_popularity(str(tmp_path / "a.json")) == Popularity({"bash": 2, "git": 1, "glibc": 2})

    def test_several_caches_of_any_kind(self, cache, tmp_path):
        """What the first cache does not have comes from the next one, be that a folder or a file system of fsspec."""
        memory = fsspec.filesystem("memory")
        for file in cache.iterdir():
            if file.suffix == ".narinfo" or file.name == "nix-cache-info":
                memory.pipe_file(f"/popcount-cache/{file.name}", file.read_bytes())
        (cache / f"{LIBC.hash}.narinfo").unlink()
        words = (GIT, "--cache", cache, "--cache", "memory://popcount-cache", "--output", tmp_path / "a.json")
        assert popcount(*words) == 0
        assert load_popularity(str(tmp_path / "a.json")) == Popularity({"bash": 1, "git": 1, "glibc": 1})

    def test_a_state_is_kept_for_the_next_count(self, cache, tmp_path):
        """With --state only what is new is asked for; the facts of a cache stay."""
        words = ("--state", tmp_path / "state", "--output", tmp_path / "a.json")
        with FileServer(cache) as server:
            assert popcount(BASH, "--cache", server.url, *words) == 0
            assert popcount(BASH, GIT, "--cache", server.url, *words) == 0
            assert {path.hash: server.asked(f"{path.hash}.narinfo") for path in (LIBC, BASH, GIT)} == {
                path.hash: 1 for path in (LIBC, BASH, GIT)
            }
        assert load_popularity(str(tmp_path / "a.json")) == Popularity({"bash": 2, "git": 1, "glibc": 2})

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
    def test_an_interrupted_count_goes_on(self, cache, tmp_path, number, code):
        """However it ends, the file is not there, what was found is, and the same command goes on."""
        ended = False

        def stall(request, _):
            # the last path waits for the signal
            waits = not ended and request.path.startswith(f"/{LIBC.hash}")
            return Answer(status=404, before=lambda: time.sleep(1)) if waits else None

        with FileServer(cache, stall) as server:
            words = [GIT, "--cache", server.url, "--output", tmp_path / "a.json", "--progress", "plain"]
            command = [sys.executable, "-m", "nixery_core", "popcount", *map(str, words)]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                while not server.asked(f"{LIBC.hash}.narinfo"):
                    time.sleep(0.01)
                process.send_signal(number)
                ended = True
                _, errors = process.communicate(timeout=30)
            assert process.returncode == code
            assert "run it again to go on" in errors or number == signal.SIGKILL
            assert not (tmp_path / "a.json").exists()
            assert popcount(GIT, "--cache", server.url, "--output", tmp_path / "a.json") == 0
            assert server.asked(f"{GIT.hash}.narinfo") == server.asked(f"{BASH.hash}.narinfo") == 1
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "cache"]
        assert load_popularity(str(tmp_path / "a.json")) == Popularity({"bash": 1, "git": 1, "glibc": 1})


class TestServed:
    def test_images_that_were_served(self, tmp_path, capsys):
        """--served counts what the storage tells, with a half-life and a compaction if asked."""
        counter = ServedCounter(open_backend(tmp_path / "images"))
        image = Digest.of(b"manifest")
        counter.describe(image, Closure([PathInfo(BASH, 96, [])], [BASH]))
        counter.record(image, 3)
        counter.record(Digest.of(b"another"))
        counter.flush()
        words = (
            "--served",
            tmp_path / "images",
            "--output",
            tmp_path / "a.json",
            "--half-life",
            7,
            "--compact",
            "--json",
        )
        assert popcount(*words) == 0
        assert load_popularity(str(tmp_path / "a.json")) == Popularity({"bash": 3})
        report = json.loads(capsys.readouterr().out)
        assert (report["images_served"], report["unknown_images"]) == (4, 1)


class TestRefusing:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            [str(GIT), "--served", "images"],
            [str(GIT), "--half-life", "3"],
            [str(GIT), "--compact"],
            [str(GIT), "--connections", "0"],
            [str(GIT), "--output", "-", "--json"],
            [str(GIT), "--output", "nowhere/x.json"],
            ["/nix/store/x"],
        ],
    )
    def test_arguments_that_cannot_be_meant(self, words, tmp_path, monkeypatch, capsys):
        """A mistake is told before any work starts, with the next step."""
        monkeypatch.chdir(tmp_path)
        assert popcount("--output", "x.json", *words) == 2
        assert "nixery-core: " in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_list(self, tmp_path, capsys):
        """A list without paths makes no file without counts."""
        (tmp_path / "list").write_text("\n")
        assert popcount(tmp_path / "list", "--output", tmp_path / "x.json") == 2
        assert "no store paths" in capsys.readouterr().err


class TestProgress:
    def test_plain_lines(self, capsys):
        """At least the last state is shown."""
        with walk_progress("plain") as on_progress:
            on_progress(WalkProgress(done=1, found=9, missing=0, failed=0))
            on_progress(WalkProgress(done=9, found=9, missing=2, failed=1))
        assert capsys.readouterr().err == "9 of 9 store paths, 2 missing, 1 failed\n"

    def test_bars_and_none(self):
        """A bar is drawn where it is asked for; none shows nothing."""

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        for style, text in (("none", ""), ("bars", "1 of 9 store paths"), ("auto", "1 of 9 store paths")):
            stream = Terminal()
            with walk_progress(style, stream=stream) as on_progress:
                on_progress(WalkProgress(done=1, found=9, missing=0, failed=0))
            assert text in stream.getvalue()
            assert bool(text) == bool(stream.getvalue())

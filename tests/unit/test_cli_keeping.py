"""The commands that keep a storage healthy: fsck, gc, index-export, untag."""

import argparse
import json
import os

import pytest

from nixery_core.cli import main
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.keeping_text import duration, positive
from nixery_core.model.oci import CONFIG, LAYER, MANIFEST, Manifest
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import INDEX_KEY, blob_key, staging_key
from nixery_core.storage.layout import list_tags, publish_ref
from nixery_core.storage.plugins import open_backend


def add_image(backend, name, tag, text="one"):
    config = put_blob(backend, json.dumps(text).encode(), media_type=CONFIG)
    layer = put_blob(backend, f"layer {text}".encode(), media_type=LAYER)
    manifest = put_blob(backend, Manifest(config=config, layers=(layer,)).to_bytes(), media_type=MANIFEST)
    publish_ref(backend, name, tag, manifest)
    return manifest


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "images")


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "images")


class TestNames:
    def test_the_index_is_written(self, backend, store, capsys):
        """index-export makes index.json of the names, and says how many there are."""
        add_image(backend, "git", "v1")
        backend.delete(INDEX_KEY)
        assert main(["index-export", store]) == ExitCode.OK
        assert capsys.readouterr().out == "index.json has 1 name\n"
        assert b"git:v1" in backend.get(INDEX_KEY)
        assert main(["index-export", store, "--json"]) == ExitCode.OK
        assert json.loads(capsys.readouterr().out) == {"names": 1}

    def test_a_name_is_forgotten(self, backend, store, capsys):
        """Untag forgets exactly one tag, and says so."""
        for tag in ("v1", "v2"):
            add_image(backend, "shell/git", tag)
        assert main(["untag", store, "shell/git:v1"]) == ExitCode.OK
        assert list(list_tags(backend, "shell/git")) == ["v2"]
        assert main(["untag", store, "shell/git:v2", "--json"]) == ExitCode.OK
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"name": "shell/git", "tag": "v2"}

    @pytest.mark.parametrize(
        ("image", "code"), [("git:v9", ExitCode.STORAGE), ("git", ExitCode.USAGE), ("Git:v1", ExitCode.USAGE)]
    )
    def test_what_is_not_there_cannot_be_forgotten(self, backend, store, capsys, image, code):
        """A name that does not exist, or is none, is an error with a hint."""
        add_image(backend, "git", "v1")
        assert main(["untag", store, image]) == code
        assert "next:" in capsys.readouterr().err
        assert list(list_tags(backend, "git")) == ["v1"]


class TestFsck:
    def test_a_healthy_storage(self, backend, store, capsys):
        """Exit code 0 and one line that says how much was looked at."""
        add_image(backend, "git", "v1")
        assert main(["fsck", store]) == ExitCode.OK
        assert capsys.readouterr().out.endswith("0 broken, 0 left over, 0 repaired\n")

    def test_a_damaged_one(self, backend, store, capsys):
        """Exit code 9 as long as something broken is found, also when it is repaired; then 0 after the next build."""
        manifest = add_image(backend, "git", "v1")
        backend.replace(blob_key(manifest.digest), b"x" * manifest.size)
        for options in ([], ["--repair"]):
            assert main(["fsck", store, *options]) == ExitCode.DAMAGED
            assert "wrong-blob" in capsys.readouterr().out
        assert add_image(backend, "git", "v1") == manifest
        assert main(["fsck", store]) == ExitCode.OK

    def test_json(self, backend, store, capsys):
        """One document with every problem, for scripts."""
        manifest = add_image(backend, "git", "v1")
        backend.replace("readme", b"x")
        backend.delete(blob_key(manifest.digest))
        assert main(["fsck", store, "--json", "--quick", "--progress", "plain"]) == ExitCode.DAMAGED
        report = json.loads(capsys.readouterr().out)
        assert (report["broken"], report["leftovers"], report["repaired"], report["bytes_read"]) == (1, 1, 0, 0)
        assert report["kinds"] == {"foreign-key": 1, "missing-blob": 1}
        assert {
            "kind": "foreign-key",
            "broken": False,
            "key": "readme",
            "detail": "1 bytes; none of ours",
            "repaired": False,
        } in report["problems"]

    @pytest.mark.parametrize("options", [["--grace", "soon"], ["--workers", "0"], ["--grace", "-1"]])
    def test_bad_options(self, store, capsys, options):
        """Malformed numbers are refused before anything starts."""
        with pytest.raises(SystemExit) as raised:
            main(["fsck", store, *options])
        assert raised.value.code == 2


class TestGc:
    def test_garbage_goes(self, backend, store, capsys):
        """What lost its name is told first, then removed, with its bytes; what has a name stays."""
        add_image(backend, "git", "v1")
        add_image(backend, "git", "v2", "two")
        main(["untag", store, "git:v1"])
        options = ["--grace", "0", "--keep", "0"]
        capsys.readouterr()
        assert main(["gc", store, *options, "--dry-run"]) == ExitCode.OK
        assert "3 blobs would be removed" in capsys.readouterr().out
        before = sum(info.size for info in backend.list("blobs/"))
        assert main(["gc", store, *options, "--json"]) == ExitCode.OK
        report = json.loads(capsys.readouterr().out)
        assert report["removed_blobs"] == report["kept_blobs"] == 3
        assert report["removed_bytes"] == before - sum(info.size for info in backend.list("blobs/"))
        assert (report["names"], report["dry_run"], report["next_in"]) == (1, False, None)
        assert main(["fsck", store]) == ExitCode.OK

    def test_garbage_waits(self, backend, store, capsys):
        """With a grace the first run only tells when something may go."""
        add_image(backend, "git", "v1")
        main(["untag", store, "git:v1"])
        for info in list(backend.list("blobs/")):
            os.utime(backend.root / info.key, (0, 0))
        capsys.readouterr()
        assert main(["gc", store, "--grace", "24h"]) == ExitCode.OK
        assert "3 blobs wait" in capsys.readouterr().out
        assert len(list(backend.list("blobs/"))) == 3

    def test_what_dead_writers_left_goes(self, backend, store, capsys):
        """What lies in staging since long ago is told, and removed."""
        key = staging_key()
        backend.replace(key, b"half a layer")
        os.utime(backend.root / key, (0, 0))
        assert main(["gc", store, "--dry-run"]) == ExitCode.OK
        assert "1 unfinished uploads would be removed: their writers died" in capsys.readouterr().out
        assert backend.stat(key)
        assert main(["gc", store, "--json"]) == ExitCode.OK
        assert json.loads(capsys.readouterr().out)["removed_unfinished"] == 1
        assert backend.stat(key) is None

    def test_a_name_that_cannot_be_read_stops_it(self, backend, store, capsys):
        """Nobody can tell what it needs, so nothing is removed."""
        add_image(backend, "git", "v1")
        backend.replace("refs/git/_tags/v2", b"no JSON")
        assert main(["gc", store, "--grace", "0", "--keep", "0"]) == ExitCode.STORAGE
        assert "fsck --repair" in capsys.readouterr().err
        assert len(list(backend.list("blobs/"))) == 3


def test_time_spans():
    """A number with a unit, or seconds."""
    assert [duration(text) for text in ("0", "90", "90s", "2m", "1.5h", "7d", "1w")] == [
        *(0, 90, 90, 120, 5400),
        *(604800, 604800),
    ]
    for text in ("", "h", "-1s", "1y", "1 h", "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            duration(text)
    assert positive("3") == 3

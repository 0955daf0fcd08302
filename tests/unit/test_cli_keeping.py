"""The commands that keep a storage healthy: index-export, untag."""

import json

import pytest

from nixery_core.cli import main
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.model.oci import CONFIG, LAYER, MANIFEST, Manifest
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import INDEX_KEY
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

"""Storage that can only be read: a web server, a ZIP archive."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nixery_core.errors import ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob, read_blob
from nixery_core.storage.keys import blob_key
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.servers import LOOPBACK, free_port, serving

BLOB = bytes(range(256)) * 50_000


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A directory with a storage in it."""
    local = LocalBackend(tmp_path / "stored")
    put_blob(local, BLOB, media_type="text/plain")
    local.create("refs/shell/_tags/latest", b"{}")
    local.create("refs/a/b/_tags/v1", b"{}")
    return tmp_path / "stored"


@pytest.fixture
def web(stored: Path, tmp_path: Path) -> Iterator[Backend]:
    """The storage behind the web server of Python."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK, "--directory", stored]
    with serving(command, port, log=tmp_path / "log"):
        yield open_backend(f"http://{LOOPBACK}:{port}")


@pytest.fixture
def archive(stored: Path, tmp_path: Path) -> Backend:
    """The storage in a ZIP archive, in a folder of it."""
    with zipfile.ZipFile(tmp_path / "stored.zip", "w") as packed:
        for path in stored.rglob("*"):
            if path.is_file():
                packed.write(path, f"images/{path.relative_to(stored)}")
    return open_backend(f"zip://images::file://{tmp_path}/stored.zip")


@pytest.fixture(params=["web", "archive"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each storage in turn."""
    found: Backend = request.getfixturevalue(request.param)
    return found


def test_everything_is_read(backend: Backend) -> None:
    """Blobs and small objects are read, whole, in ranges, and looked up."""
    digest = Digest.of(BLOB)
    assert read_blob(backend, digest) == BLOB
    assert b"".join(backend.stream(blob_key(digest), 1000, 9_000_000)) == BLOB[1000:9_000_000]
    info = backend.stat(blob_key(digest))
    assert info is not None
    assert info.size == len(BLOB)
    assert backend.get("refs/shell/_tags/latest") == b"{}"


def test_what_is_not_there(backend: Backend) -> None:
    """A missing object is not found."""
    assert backend.stat("cache/layers/none") is None
    with pytest.raises(ObjectNotFound):
        backend.get("cache/layers/none")


def test_listing(archive: Backend) -> None:
    """An archive is listed as a directory is."""
    assert [info.key for info in archive.list("refs/")] == ["refs/a/b/_tags/v1", "refs/shell/_tags/latest"]
    assert len(list(archive.list(""))) == 3


def test_writing_is_refused(backend: Backend, stored: Path) -> None:
    """Whatever would write is an error of ours that says so; nothing is half-written."""
    calls: list[Callable[[], object]] = [
        lambda: put_blob(backend, b"new", media_type="text/plain"),
        lambda: put_blob(backend, bytes(17 << 20), media_type="text/plain"),
        lambda: backend.create("cache/layers/k", b"x"),
        lambda: backend.replace("index.json", b"x"),
    ]
    for call in calls:
        with pytest.raises(StorageError) as raised:
            call()
        assert "can be read, but not be written to" in raised.value.hint
    assert not (stored / "cache").exists()
    assert read_blob(backend, Digest.of(BLOB)) == BLOB


def test_archive_that_is_none(tmp_path: Path) -> None:
    """A file that is no archive is an error of ours, at the first use at the latest."""
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(StorageError):
        open_backend(f"zip://::file://{tmp_path}/x.zip").get("index.json")

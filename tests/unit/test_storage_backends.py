"""The shipped backends keep the promises of the storage contract."""

import uuid
from pathlib import Path

import pytest

from nixery_core.events import BuildEvent, EventCallback, ignore_events
from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import (
    SupportsCreateIfAbsent,
    SupportsLocalFiles,
    SupportsPublish,
    SupportsSignedUrls,
    SupportsUploads,
    with_events,
)
from nixery_core.storage.fsspec_backend import SPOOL, FsspecBackend
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing import BackendTests


class TestLocalBackend(BackendTests):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """Return an empty storage."""
        return LocalBackend(tmp_path / "with space" / "storage")


class TestMemoryBackend(BackendTests):
    large = SPOOL + 12345
    other_processes = False

    @pytest.fixture
    def backend(self) -> Backend:
        """Return an empty storage."""
        return FsspecBackend(f"memory://{uuid.uuid4()}/prefix/")


class TestMemoryBackendAtTheRoot(BackendTests):
    other_processes = False

    @pytest.fixture
    def backend(self) -> Backend:
        """Return an empty storage."""
        return FsspecBackend(f"memory://{uuid.uuid4()}")


class TestFileSystemWithoutConditionalWrites(BackendTests):
    """A file system of fsspec that can only write, rename and look: the way through ``staging/``."""

    large = SPOOL + 12345

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """Return an empty storage."""
        return FsspecBackend((tmp_path / "storage").as_uri())

    # the reference is the URL of a directory, which another process opens as such
    other_processes = False

    def test_reference_opens_the_same_storage(self, backend: Backend) -> None:
        """The reference of a file URL is opened as a directory, with the same objects."""
        backend.create("cache/layers/k", b"here")
        assert open_backend(backend.ref.url).get("cache/layers/k") == b"here"


def test_capabilities_of_the_core(tmp_path: Path) -> None:
    """Each backend says what it can do beyond the contract."""
    local, memory = LocalBackend(tmp_path), FsspecBackend("memory://capabilities")
    assert isinstance(local, SupportsLocalFiles)
    assert not isinstance(local, SupportsSignedUrls)
    assert not isinstance(memory, SupportsLocalFiles)
    for backend in (local, memory):
        assert isinstance(backend, SupportsPublish)
        assert isinstance(backend, SupportsCreateIfAbsent)
        assert backend.creates_atomically()
        assert not isinstance(backend, SupportsUploads)
    assert memory.signed_url("index.json") is None
    assert memory.signed_url("index.json", method="HEAD") is None
    assert memory.signed_url("index.json", content_type="text/plain") is None
    assert not FsspecBackend(tmp_path.as_uri()).creates_atomically()


def test_events_are_told_by_whoever_can(tmp_path: Path) -> None:
    """A backend that has nothing to tell is taken as it is; one that has gets the callback."""

    class Telling(LocalBackend):
        on_event: EventCallback = staticmethod(ignore_events)

        def with_events(self, on_event: EventCallback) -> "Telling":
            again = Telling(self.root)
            again.on_event = on_event
            return again

    quiet, telling = LocalBackend(tmp_path), Telling(tmp_path)
    seen: list[BuildEvent] = []
    assert with_events(quiet, seen.append) is quiet
    heard = with_events(telling, seen.append)
    assert isinstance(heard, Telling)
    assert heard.on_event == seen.append
    assert telling.on_event is ignore_events

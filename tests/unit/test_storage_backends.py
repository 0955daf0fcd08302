"""The shipped backends keep the promises of the storage contract."""

import uuid
from pathlib import Path

import pytest

from nixery_core.storage.backend import Backend
from nixery_core.storage.fsspec_backend import SPOOL, FsspecBackend
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.backend import BackendTests


class TestLocalBackend(BackendTests):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """Return an empty storage."""
        return LocalBackend(tmp_path / "with space" / "storage")


class TestMemoryBackend(BackendTests):
    large = SPOOL + 12345

    @pytest.fixture
    def backend(self) -> Backend:
        """Return an empty storage."""
        return FsspecBackend(f"memory://{uuid.uuid4()}/prefix/")


class TestMemoryBackendAtTheRoot(BackendTests):
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

    def test_reference_opens_the_same_storage(self, backend: Backend) -> None:
        """The reference of a file URL is opened as a directory, with the same objects."""
        backend.create("cache/layers/k", b"here")
        assert open_backend(backend.ref.url).get("cache/layers/k") == b"here"

"""Blobs are published by commit alone."""

from __future__ import annotations

import gc

import pytest

from nixery_core.errors import StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob, read_blob
from nixery_core.storage.keys import BLOBS, blob_key
from nixery_core.testing._suite.base import SuiteBase, at_once, noise, size_of


class BlobTests(SuiteBase):
    """Writers of blobs, alone and many at once."""

    def test_committed_blob_is_read_back(self, backend: Backend) -> None:
        """A blob is under the key of its digest after commit, whole."""
        data = b"hello, " * 100
        writer = backend.open_blob()
        writer.write(data[:10])
        writer.write(bytearray(data[10:20]))
        writer.write(memoryview(data)[20:])
        writer.commit(Digest.of(data))
        assert backend.get(blob_key(Digest.of(data))) == data

    def test_what_was_written_may_change_afterwards(self, backend: Backend) -> None:
        """A writer has taken what it was given when write returns."""
        buffer = bytearray(b"before")
        writer = backend.open_blob()
        writer.write(buffer)
        buffer[:] = b"after!"
        writer.commit(Digest.of(b"before"))
        assert backend.get(blob_key(Digest.of(b"before"))) == b"before"

    def test_empty_blob(self, backend: Backend) -> None:
        """A blob without a byte is a blob."""
        writer = backend.open_blob()
        writer.commit(Digest.of(b""))
        assert backend.get(blob_key(Digest.of(b""))) == b""
        assert b"".join(backend.stream(blob_key(Digest.of(b"")))) == b""
        assert size_of(backend, blob_key(Digest.of(b""))) == 0

    def test_large_blob(self, backend: Backend) -> None:
        """A blob larger than any buffer arrives whole."""
        data = noise(self.large)
        writer = backend.open_blob()
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        writer.commit(Digest.of(data))
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data
        assert size_of(backend, blob_key(Digest.of(data))) == len(data)

    def test_nothing_is_visible_before_commit(self, backend: Backend) -> None:
        """An unfinished blob is under no key of blobs."""
        writer = backend.open_blob()
        writer.write(b"half")
        assert list(backend.list(BLOBS)) == []
        writer.cancel()

    def test_cancelled_blob_leaves_nothing(self, backend: Backend) -> None:
        """A cancelled blob is nowhere, however large."""
        for size in (0, 1, self.large):
            writer = backend.open_blob()
            writer.write(bytes(size))
            writer.cancel()
        assert list(backend.list("")) == []

    def test_cancel_twice_or_after_commit_does_nothing(self, backend: Backend) -> None:
        """Cancel may be called at any time."""
        writer = backend.open_blob()
        writer.write(b"kept")
        writer.commit(Digest.of(b"kept"))
        writer.cancel()
        writer.cancel()
        assert backend.get(blob_key(Digest.of(b"kept"))) == b"kept"

    def test_dropped_writer_publishes_nothing(self, backend: Backend) -> None:
        """A writer that is forgotten leaves nothing behind, however much was written."""
        for size in (1, self.large):
            writer = backend.open_blob()
            writer.write(bytes(size))
            del writer
        gc.collect()
        assert list(backend.list("")) == []

    def test_exception_while_writing_leaves_nothing(self, backend: Backend) -> None:
        """What a caller cancels because of its own failure is nowhere."""

        def interrupted() -> bytes:
            raise KeyboardInterrupt

        def write() -> None:
            writer = backend.open_blob()
            try:
                writer.write(b"half")
                writer.write(interrupted())
            finally:
                writer.cancel()

        with pytest.raises(KeyboardInterrupt):
            write()
        assert list(backend.list("")) == []

    def test_writer_is_closed_after_commit_and_cancel(self, backend: Backend) -> None:
        """Writing or committing again is an error, and changes nothing."""
        committed, cancelled = backend.open_blob(), backend.open_blob()
        committed.write(b"data")
        committed.commit(Digest.of(b"data"))
        cancelled.write(b"other")
        cancelled.cancel()
        for writer in (committed, cancelled):
            with pytest.raises(StorageError):
                writer.write(b"more")
            with pytest.raises(StorageError):
                writer.commit(Digest.of(b"other"))
        assert [info.key for info in backend.list(BLOBS)] == [blob_key(Digest.of(b"data"))]

    def test_existing_blob_is_success(self, backend: Backend) -> None:
        """The same blob may be written any number of times."""
        for _ in range(2):
            put_blob(backend, b"same", media_type="text/plain")
            writer = backend.open_blob()
            writer.write(b"same")
            writer.commit(Digest.of(b"same"))
        assert backend.get(blob_key(Digest.of(b"same"))) == b"same"

    def test_writers_of_one_blobat_once(self, backend: Backend) -> None:
        """Many writers of one blob all succeed, and it is whole."""
        data = noise(300_000)

        def write() -> None:
            writer = backend.open_blob()
            for start in range(0, len(data), 100_000):
                writer.write(data[start : start + 100_000])
            writer.commit(Digest.of(data))

        at_once(8, lambda _: write())
        assert backend.get(blob_key(Digest.of(data))) == data

    def test_writers_of_different_blobsat_once(self, backend: Backend) -> None:
        """Writers do not disturb each other, nor does one that is cancelled."""

        def write(number: int) -> Digest | None:
            data = noise(200_000 + number)
            writer = backend.open_blob()
            writer.write(data[:100_000])
            writer.write(data[100_000:])
            if number % 3 == 0:
                writer.cancel()
                return None
            writer.commit(Digest.of(data))
            return Digest.of(data)

        digests = {digest for digest in at_once(8, write) if digest is not None}
        assert {info.key for info in backend.list(BLOBS)} == {blob_key(digest) for digest in digests}
        for digest in digests:
            read_blob(backend, digest)

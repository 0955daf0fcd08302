"""A blob that waits on this machine until its digest is known, and is then uploaded once."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress

from nixery_core.errors import StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage._files import blob_is_over, is_full, storage_error
from nixery_core.storage._spool import Spool, has_room
from nixery_core.storage.keys import blob_key
from nixery_core.storage.object_store import ObjectHeaders, ObjectStore
from nixery_core.storage.part_upload import FIRST_PART, PartUpload
from nixery_core.storage.part_writer import PartWriter

LOOK_EVERY = 64 << 20
"""Bytes between two looks at the room on the disk."""


class SpoolWriter:
    """One blob on its way into an object store; a :class:`~nixery_core.storage.backend.BlobWriter`.

    What is small waits in memory, and the rest in unnamed files, which are gone with their last handle,
    whatever happens.  Nothing of it is in the bucket before the commit.

    Args:
        store: The bucket.
        instead: Opens the writer that goes on with all that was written where this machine has no room;
            without it that is an error.
    """

    def __init__(self, store: ObjectStore, instead: Callable[[], PartWriter] | None = None) -> None:
        self._store = store
        self._instead = instead
        self._buffer = bytearray()
        self._spool: Spool | None = None
        self._other: PartWriter | None = None
        self._looked_at = 0
        self._open = True
        self._discard: weakref.finalize[[], SpoolWriter] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; raises StorageError, such as for a full disk of this machine."""
        self._check_open()
        with memoryview(data).cast("B") as view:
            if self._other is None and self._spool is None and len(self._buffer) + len(view) > FIRST_PART:
                self._leave_memory()
            if self._other is not None:
                self._other.write(view)
            elif self._spool is not None:
                self._append(self._spool, view)
            else:
                self._buffer += view

    def commit(self, digest: Digest) -> None:
        """Send what was written as the blob *digest*; an existing blob is success; raises StorageError."""
        self._check_open()
        self._open = False
        try:
            if self._other is not None:
                self._other.commit(digest)
            elif self._spool is not None:
                self._send(self._spool, blob_key(digest))
            else:
                key = blob_key(digest)
                self._store.put(key, self._buffer, ObjectHeaders.of(key))
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel.

        Raises:
            StorageError: If the parts that were sent could not be removed.
        """
        self._open = False
        self._buffer = bytearray()
        self._close_spool()
        other, self._other = self._other, None
        if other is not None:
            other.cancel()

    def _check_open(self) -> None:
        if not self._open:
            raise blob_is_over()

    def _leave_memory(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        try:
            spool = Spool() if self._instead is None or has_room() else None
        except OSError as error:
            if self._instead is None:
                raise storage_error("a large blob", tempfile.gettempdir(), error) from error
            # no folder for temporary files: a container with a root that cannot be written
            spool = None
        if spool is None:
            assert self._instead is not None
            self._other = self._instead()
            self._other.write(buffer)
            return
        self._spool = spool
        self._discard = weakref.finalize(self, spool.close)
        self._append(spool, memoryview(buffer))

    def _append(self, spool: Spool, view: memoryview) -> None:
        if self._instead is not None and spool.size - self._looked_at >= LOOK_EVERY:
            self._looked_at = spool.size
            if not has_room():
                self._move(spool).write(view)
                return
        try:
            spool.append(view)
        except OSError as error:
            if self._instead is None or not is_full(error):
                raise storage_error("a large blob", tempfile.gettempdir(), error) from error
            self._move(spool).write(view)

    def _move(self, spool: Spool) -> PartWriter:
        """Go on elsewhere, with what is in the file."""
        assert self._instead is not None
        self._other = other = self._instead()
        for start in range(0, spool.size, FIRST_PART):
            other.write(spool.take(start, FIRST_PART))
        self._close_spool()
        return other

    def _close_spool(self) -> None:
        self._spool = None
        if self._discard is not None:
            self._discard()

    def _send(self, spool: Spool, key: str) -> None:
        upload = PartUpload(self._store, key)
        try:
            upload.start()
            while upload.size < spool.size:
                part = spool.take(upload.size, upload.next_size)
                upload.send(part, last=upload.size + len(part) == spool.size)
            upload.complete()
        except BaseException:
            # the first error is the one to tell
            with suppress(StorageError):
                upload.abort()
            raise

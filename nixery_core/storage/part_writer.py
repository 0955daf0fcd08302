"""A blob on its way into an object store: in one request if it is small, in parts through staging if it is large."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from nixery_core.errors import StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage._files import blob_is_over
from nixery_core.storage.keys import blob_key, staging_key
from nixery_core.storage.object_store import ObjectHeaders, ObjectStore
from nixery_core.storage.part_upload import FIRST_PART, PartUpload


class PartWriter:
    """One blob on its way into an object store; a :class:`~nixery_core.storage.backend.BlobWriter`.

    Holds at most one part, and those that are being sent.

    Args:
        store: The bucket.
        publish: Makes a staged object of so many bytes the blob of a digest, or leaves nothing of it.
    """

    def __init__(self, store: ObjectStore, publish: Callable[[str, Digest, int], None]) -> None:
        self._store = store
        self._publish = publish
        self._part = bytearray()
        self._upload: PartUpload | None = None
        self._open = True
        self._discard: weakref.finalize[[PartUpload, int], PartWriter] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; blocks while as many parts are on their way as may be; raises StorageError."""
        self._check_open()
        with memoryview(data).cast("B") as view:
            start = 0
            while start < len(view):
                full = FIRST_PART if self._upload is None else self._upload.next_size
                # a part is sent when there is more: so the last one, which may have any size, is never empty
                if len(self._part) == full:
                    self._send()
                    continue
                end = min(start + full - len(self._part), len(view))
                self._part += view[start:end]
                start = end

    def commit(self, digest: Digest) -> None:
        """Publish what was written as the blob *digest*; an existing blob is success; raises StorageError."""
        self._check_open()
        self._open = False
        part, self._part = self._part, bytearray()
        upload = self._upload
        if upload is None:
            key = blob_key(digest)
            self._store.put(key, part, ObjectHeaders.of(key))
            return
        try:
            upload.send(part, last=True)
            upload.complete()
        except BaseException:
            # the first error is the one to tell
            with suppress(StorageError):
                self._abort()
            raise
        self._upload = None
        self._forget()
        self._publish(upload.key, digest, upload.size)

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel.

        Raises:
            StorageError: If the parts that were sent could not be removed.
        """
        self._open = False
        self._part = bytearray()
        self._abort()

    def _check_open(self) -> None:
        if not self._open:
            raise blob_is_over()

    def _send(self) -> None:
        if self._upload is None:
            self._upload = PartUpload(self._store, staging_key())
            # a writer that is dropped takes its parts along, also at the end of the program
            self._discard = weakref.finalize(self, _drop, self._upload, os.getpid())
            self._upload.start()
        part, self._part = self._part, bytearray()
        self._upload.send(part)

    def _abort(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            self._forget()
            upload.abort()

    def _forget(self) -> None:
        if self._discard is not None:
            self._discard.detach()


def _drop(upload: PartUpload, owner: int) -> None:
    if os.getpid() != owner:
        # the parent goes on with it
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _abort_silently(upload)
    else:
        # collected inside an event loop, perhaps the very one that has to send the request
        threading.Thread(target=_abort_silently, args=(upload,), name="nixery-core-abort").start()


def _abort_silently(upload: PartUpload) -> None:
    # nobody is left to tell; `gc` finds what stays
    with suppress(StorageError, RuntimeError):
        upload.abort()

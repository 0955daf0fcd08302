"""A blob on its way into an object store: in one request if it is small, in parts of growing size if it is large."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO

from nixery_core.errors import StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage._files import storage_error
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.keys import blob_key, staging_key
from nixery_core.storage.object_store import ObjectHeaders, ObjectStore

FIRST_PART = 8 << 20
"""Bytes of the first parts; what is not larger is put in one request."""
EQUAL_PARTS = 1000
"""So many parts are of one size: some services take no others, and few blobs are larger than 8 GiB."""
MOST_PARTS = 10_000
"""S3 takes no more (S3 User Guide, "Amazon S3 multipart upload limits")."""
_STEP = 256 << 10
_STEP_PARTS = 10


def part_size(number: int) -> int:
    """Return how many bytes part *number* of an upload has, from 1 on.

    A thousand parts of 8 MiB; then each ten parts are 256 KiB larger than the ten before, so that
    all 10,000 parts hold more than 1 TiB, and the last has 232 MiB.

    >>> [part_size(number) >> 20 for number in (1, 1000, 1011, 5000, 10_000)]
    [8, 8, 8, 107, 232]
    >>> sum(map(part_size, range(1, MOST_PARTS + 1))) > 1 << 40
    True
    """
    return FIRST_PART + max(0, number - EQUAL_PARTS - 1) // _STEP_PARTS * _STEP


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
        self._upload: _PartUpload | None = None
        self._open = True
        self._discard: weakref.finalize[[_PartUpload, int], PartWriter] | None = None

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
            raise StorageError("the blob is committed or cancelled already", hint="open another one")

    def _send(self) -> None:
        if self._upload is None:
            self._upload = _PartUpload(self._store, staging_key())
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


class SpoolWriter:
    """One blob that waits in an unnamed file of this machine, and is then sent in parts under its digest.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._size = 0
        # it has no name: it is gone with its last handle, whatever happens
        self._spool: IO[bytes] | None = tempfile.SpooledTemporaryFile(FIRST_PART)  # noqa: SIM115
        self._discard = weakref.finalize(self, self._spool.close)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; raises StorageError, such as for a full disk of this machine."""
        spool = self._file()
        try:
            self._size += spool.write(data)
        except OSError as error:
            raise storage_error("a large blob", tempfile.gettempdir(), error) from error

    def commit(self, digest: Digest) -> None:
        """Send what was written as the blob *digest*; an existing blob is success; raises StorageError."""
        spool, key = self._file(), blob_key(digest)
        try:
            spool.seek(0)
            if self._size <= FIRST_PART:
                self._store.put(key, spool.read(), ObjectHeaders.of(key))
            else:
                self._send(spool, key)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel."""
        self._spool = None
        self._discard()

    def _file(self) -> IO[bytes]:
        if self._spool is None:
            raise StorageError("the blob is committed or cancelled already", hint="open another one")
        return self._spool

    def _send(self, spool: IO[bytes], key: str) -> None:
        upload = _PartUpload(self._store, key)
        try:
            upload.start()
            while part := spool.read(upload.next_size):
                upload.send(bytearray(part), last=upload.size + len(part) == self._size)
            upload.complete()
        except BaseException:
            # the first error is the one to tell
            with suppress(StorageError):
                upload.abort()
            raise


class _PartUpload:
    """An upload in parts, some of them at once, in threads of its own that end with it."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.key = key
        self.size = 0
        self._store = store
        self._started: UnfinishedUpload | None = None
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(store.parallel_parts, thread_name_prefix="nixery-core-part")
        self._free = threading.Semaphore(store.parallel_parts)
        self._parts: list[Future[str]] = []

    @property
    def next_size(self) -> int:
        """Bytes of the part that comes next."""
        return part_size(len(self._parts) + 1)

    def start(self) -> None:
        self._started = self._store.start_upload(self.key, ObjectHeaders.of(self.key))

    def send(self, part: bytearray, *, last: bool = False) -> None:
        """Send a part when there is a thread for it; raises the StorageError of an earlier one."""
        if len(self._parts) >= MOST_PARTS:
            raise StorageError(f"a blob of more than {self.size >> 30} GiB is too large for this storage", key=self.key)
        self._free.acquire()
        self._raise_failure()
        number, offset = len(self._parts) + 1, self.size
        self.size += len(part)
        self._parts.append(self._pool.submit(self._send_part, number, offset, part, last))

    def complete(self) -> None:
        """Wait for every part and make the object of them."""
        assert self._started is not None
        parts = tuple(part.result() for part in self._parts)
        self._pool.shutdown()
        self._store.complete_upload(self._started, parts, self.size)

    def abort(self) -> None:
        """Wait for the parts that are being sent, and remove all of them."""
        self._given_up.set()
        # a part that arrives after the others were removed would stay
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._started is not None:
            self._store.abort_upload(self._started)

    def _send_part(self, number: int, offset: int, part: bytearray, last: bool) -> str:
        try:
            if self._given_up.is_set() or self._started is None:
                return ""
            return self._store.upload_part(self._started, number, offset, part, last=last)
        except BaseException:
            # those that wait behind it need not be sent
            self._given_up.set()
            raise
        finally:
            self._free.release()

    def _raise_failure(self) -> None:
        if self._given_up.is_set():
            self._free.release()
            for part in self._parts:
                if part.done() and (error := part.exception()) is not None:
                    raise error


def _drop(upload: _PartUpload, owner: int) -> None:
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


def _abort_silently(upload: _PartUpload) -> None:
    # nobody is left to tell; `gc` finds what stays
    with suppress(StorageError, RuntimeError):
        upload.abort()

"""An object on its way into an object store, in parts of growing size."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from nixery_core.errors import StorageError
from nixery_core.storage.capabilities import UnfinishedUpload
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


class PartUpload:
    """An upload in parts, some of them at once, in threads of its own that end with it.

    Args:
        store: The bucket.
        key: Of the object that the parts become.
    """

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
        """Begin it; raises StorageError."""
        self._started = self._store.start_upload(self.key, ObjectHeaders.of(self.key))

    def send(self, part: bytes | bytearray, *, last: bool = False) -> None:
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

    def _send_part(self, number: int, offset: int, part: bytes | bytearray, last: bool) -> str:
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

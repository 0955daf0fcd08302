"""The clock of the storage: ages of objects are told by the clock that wrote their times."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nixery_core.storage.backend import Backend, ObjectInfo
from nixery_core.storage.capabilities import SupportsUploads, UnfinishedUpload
from nixery_core.storage.keys import clock_key


def storage_time(backend: Backend) -> float:
    """Return what the time is where objects get their times, seconds since the epoch; raises StorageError.

    Writes an object and removes it.  Where the storage tells no times it is the time of this machine.
    """
    key = clock_key()
    try:
        backend.replace(key, b"")
        info = backend.stat(key)
    finally:
        backend.delete(key)
    return time.time() if info is None or info.modified is None else info.modified


def is_older(info: ObjectInfo, moment: float) -> bool:
    """Return whether an object was written at *moment* or before; one of unknown age was not."""
    return info.modified is not None and info.modified <= moment


def old_uploads(backend: SupportsUploads, moment: float) -> Iterator[UnfinishedUpload]:
    """Give the uploads that were begun at *moment* or before; one of unknown age was not."""
    return (each for each in backend.list_uploads() if each.started is not None and each.started <= moment)


def was_written_again(before: ObjectInfo, now: ObjectInfo) -> bool:
    """Return whether an object is another one than *before*, as far as its size and its time tell.

    Some servers tell the time of one object in whole seconds, and in a listing more exactly.

    >>> was_written_again(ObjectInfo("k", 1, 12.9), ObjectInfo("k", 1, 12.0))
    False
    >>> was_written_again(ObjectInfo("k", 1, 12.9), ObjectInfo("k", 1, 14.0))
    True
    """
    if before.size != now.size or before.modified is None or now.modified is None:
        return before.size != now.size
    return abs(before.modified - now.modified) >= 1.0

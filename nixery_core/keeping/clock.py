"""The clock of the storage: ages of objects are told by the clock that wrote their times."""

from __future__ import annotations

import time

from nixery_core.storage.backend import Backend, ObjectInfo
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

"""Files of fsspec that are written whole, or given up with all they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from nixery_core.errors import StorageError

_TRIES = 5


def upload(fs: AbstractFileSystem, path: str, pieces: Iterable[bytes], size: int, block: int) -> None:
    """Write *pieces*, of *size* bytes together, to the file *path*; raises StorageError where fewer arrive.

    A file that sends its bytes in blocks sends *block* of them at once.
    """
    # What breaks off may be seen in staging/, so commit() and discard() of fsspec are not needed: their
    # temporary file may lie on another disk.  _open(), unlike open(), keeps nothing in fs.transaction.
    file = fs._open(path, "wb", block_size=block)
    if hasattr(file, "set_pipelined"):
        # of SFTP: do not wait for the answer to each 32 KiB; the size tells whether one was an error
        file.set_pipelined(True)
    try:
        for piece in pieces:
            file.write(piece)
        file.close()
    except BaseException:
        _abandon(file)
        raise
    # some file systems do not tell that the last piece could not be written
    found = int(fs.info(path)["size"])
    if found != size:
        raise StorageError(f"{path}: {size} bytes were sent, and {found} arrived")


def make_directories(fs: AbstractFileSystem, path: str) -> None:
    """Make the directory *path* and its parents, where they are not there."""
    for attempt in range(_TRIES):
        try:
            fs.makedirs(path, exist_ok=True)
        except OSError:
            # two that make the same directories at once are in each other's way, but only once for each
            if fs.isdir(path):
                return
            if attempt == _TRIES - 1:
                raise
        else:
            return


def _abandon(file: Any) -> None:
    """Give up a file that is being written, and what it holds on this machine or another."""
    if not isinstance(file, AbstractBufferedFile):
        with contextlib.suppress(Exception):
            file.close()
        if hasattr(file, "_closed"):
            # a file of SFTP whose connection is gone would try once more when it is collected, and complain
            file._closed = True
        return
    # closing it, or dropping it, would send the rest
    with contextlib.suppress(Exception):
        file.discard()
    file.closed = True

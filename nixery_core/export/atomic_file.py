"""A file that is whole, or not there."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from nixery_core.storage import _files


@attrs.frozen
class FileWriter:
    """Takes the bytes of a file, in order."""

    _fd: int
    _path: Path

    def write(self, data: bytes) -> None:
        """Append *data*; raises StorageError, or StorageFull."""
        with _files.mapped(self._path.name, self._path.parent):
            _files.write_all(self._fd, data)


@contextmanager
def write_file_atomically(path: str | os.PathLike[str]) -> Iterator[FileWriter]:
    """Write the file *path*: it takes its place when the block ends without an exception.

    Until then the bytes are in a temporary file of the same directory, which is removed on any
    failure, and what was at *path* stays as it was.  A symbolic link at *path* is followed.  A pipe
    or a device at *path* cannot be replaced and is written to as it is.

    Raises:
        StorageError: The file cannot be written; StorageFull where there is no space left.
    """
    # replacing a link would leave the file that it names as it was
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        with _into(target) as writer:
            yield writer
        return
    with _files.mapped(target.name, target.parent):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a directory is there")
        temporary = target.with_name(f".{uuid.uuid4()}.part")
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    owner = os.getpid()
    try:
        yield FileWriter(fd, target)
        with _files.mapped(target.name, target.parent):
            os.fsync(fd)
            _files.publish(temporary, target)
    except BaseException:
        _files.discard(fd, temporary, owner)
        raise
    os.close(fd)


@contextmanager
def _into(target: Path) -> Iterator[FileWriter]:
    with _files.mapped(target.name, target.parent):
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield FileWriter(fd, target)
    finally:
        os.close(fd)

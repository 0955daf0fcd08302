"""Files that are whole or not there at all, whatever happens to the machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nixery_core.errors import StorageError, StorageFull

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
# some network file systems lock files only, and only those that are open for writing
_NO_LOCKS = {errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def mapped(key: str, root: object) -> Iterator[None]:
    """Turn the errors of the operating system into StorageErrors that name *key* and *root*."""
    try:
        yield
    except OSError as error:
        raise storage_error(key, root, error) from error


def storage_error(key: str, root: object, error: OSError) -> StorageError:
    """Return the StorageError for *error*."""
    message = f"{key or 'the storage'} in {root}: {error.strerror or str(error) or type(error).__name__}"
    if is_full(error):
        return StorageFull(message, key=key, hint="free some space or raise the quota, then run it again")
    if error.errno in _FORBIDDEN:
        return StorageError(message, key=key, hint="run as a user who may read and write there, or name another place")
    if error.errno == errno.EMFILE:
        return StorageError(message, key=key, hint="raise the limit of open files (ulimit -n)")
    return StorageError(message, key=key)


def blob_is_over(key: str = "") -> StorageError:
    """Return the error for whoever goes on with a blob that is committed or cancelled."""
    return StorageError("the blob is committed or cancelled already", key=key, hint="open another one")


def is_full(error: OSError) -> bool:
    """Return whether *error* says that a disk or a quota is full."""
    return error.errno in _FULL


def create_file(path: Path) -> int:
    """Create the file *path*, and its directory, for writing; return the file descriptor."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        make_directories(path.parent)
        return os.open(path, flags, 0o666)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*."""
    with memoryview(data) as view:
        written = os.write(fd, view)
        while written < len(view):
            written += os.write(fd, view[written:])


def make_directories(path: Path) -> None:
    """Create the directory *path* with its parents, and bring their names to the disk."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directories(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file is where a directory should be", str(path)) from None
        return
    _sync_directory(path.parent)


def publish(staged: Path, target: Path, *, sync: bool = True) -> None:
    """Rename *staged*, which is on the disk, to *target*, in the place of what is there.

    With *sync* the name is on the disk too when this returns; without, a power cut may undo it.
    """
    staged.replace(target)
    if sync:
        _sync_directory(target.parent)


def publish_new(staged: Path, target: Path, *, lock: Path, sync: bool) -> bool:
    """Give *staged*, which is on the disk, the name *target* if there is no such file; return whether it did."""
    try:
        os.link(staged, target)
    except FileExistsError:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a directory is where a file should be", str(target)) from None
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        with locked(lock):
            if target.exists():
                return False
            staged.replace(target)
    if sync:
        _sync_directory(target.parent)
    return True


def sync_names(directory: Path) -> None:
    """Bring the names of all files in the directories of *directory* to the disk, whoever gave them."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                _sync_directory(Path(entry.path))


def discard(fd: int, path: Path, owner: int) -> None:
    """Close *fd* and remove *path*; in a child process of *owner* only close."""
    with contextlib.suppress(OSError):
        os.close(fd)
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold *directory* against every other process and thread that locks it; waits for them.

    A file system without locks is not locked.
    """
    # a lock on the directory itself leaves no file behind, and ends with its process
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # not every file system can: then its own order of writes has to do
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)

"""Store paths as files in a directory: the store that Nix keeps on this machine, or a copy of it."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator

import attrs

from nixery_core.errors import StoreReadError
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.reader import EntryType, StoreEntry

PIECE = 1 << 20
"""Bytes of a file that are in memory at once."""

_CASE_HACK = re.compile(rb"~nix~case~hack~[0-9]+\Z")
# O_NOFOLLOW: what was listed as a file and is a link by now must not lead elsewhere;
# O_NONBLOCK: what is a pipe by now must not hang
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_KINDS = {
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}


def _on_darwin() -> bool:
    return sys.platform == "darwin"


@attrs.frozen
class DirectoryReader:
    """Reads store paths from a directory; a :class:`~nixery_core.stores.reader.StoreReader`.

    Every name is looked up relative to its open directory and links are never followed, so
    nothing outside a store path can get into an archive.  Hard links are just files.
    """

    store_dir: str = STORE_DIR
    """Where the store paths are; another directory for a chroot store or a copy."""
    case_hack: bool = attrs.field(factory=_on_darwin, kw_only=True)
    """Whether the suffixes that Nix puts on names which differ in case alone are taken off (``use-case-hack``)."""

    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* with contents; raises StoreReadError."""
        return self._walk(path, with_contents=True)

    def listing(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* without contents; raises StoreReadError."""
        return self._walk(path, with_contents=False)

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        """Return up to *size* first bytes of the regular file *name* in *path*; raises StoreReadError."""
        *directories, last = [os.fsencode(path.base), *(name.split(b"/") if name else [])]
        where = _Place(self.store_dir, path, name)
        fd = self._open_store(path)
        try:
            for directory in directories:
                inner = _open(self._on_disk(fd, directory, where), _OPEN_DIRECTORY, fd, where)
                os.close(fd)
                fd = inner
            file = _open(self._on_disk(fd, last, where), _OPEN_FILE, fd, where)
        finally:
            os.close(fd)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise StoreReadError(f"{where} is not a regular file")
            return _read(file, size, where)
        finally:
            os.close(file)

    def _walk(self, path: StorePath, *, with_contents: bool) -> Iterator[StoreEntry]:
        stack = [_Directory(self._open_store(path), iter([_Child(os.fsencode(path.base), b"")]))]
        try:
            while stack:
                directory = stack[-1]
                child = next(directory.children, None)
                if child is None:
                    stack.pop().close()
                    continue
                where = _Place(self.store_dir, path, child.name)
                try:
                    status = os.lstat(child.disk, dir_fd=directory.fd)
                    mode = status.st_mode
                    if stat.S_ISREG(mode):
                        size = status.st_size
                        yield StoreEntry(
                            name=child.name,
                            type=EntryType.REGULAR,
                            executable=mode & stat.S_IXUSR != 0,
                            size=size,
                            contents=_contents(directory, child.disk, size, where) if with_contents else None,
                        )
                    elif stat.S_ISDIR(mode):
                        yield StoreEntry(name=child.name, type=EntryType.DIRECTORY)
                        inner = _Directory(os.open(child.disk, _OPEN_DIRECTORY, dir_fd=directory.fd), iter(()))
                        stack.append(inner)
                        inner.children = iter(self._children(inner.fd, child.name, where))
                    elif stat.S_ISLNK(mode):
                        target = os.readlink(child.disk, dir_fd=directory.fd)
                        yield StoreEntry(name=child.name, type=EntryType.SYMLINK, target=target)
                    else:
                        kind = _KINDS.get(stat.S_IFMT(mode), "special file")
                        raise StoreReadError(
                            f"{where} is a {kind}",
                            hint="a store path holds files, directories and symbolic links only: build it again",
                        )
                except OSError as error:
                    raise _failure(where, error) from error
        finally:
            for directory in stack:
                directory.close()

    def _children(self, fd: int, parent: bytes, where: _Place) -> list[_Child]:
        prefix = parent + b"/" if parent else b""
        names = [os.fsencode(name) for name in os.listdir(fd)]
        if not self.case_hack:
            return [_Child(name, prefix + name) for name in sorted(names)]
        real = {_CASE_HACK.sub(b"", name): name for name in names}
        if len(real) != len(names):
            raise StoreReadError(f"{where} holds two files of one name but for Nix's case suffix")
        return [_Child(disk, prefix + name) for name, disk in sorted(real.items())]

    def _on_disk(self, fd: int, name: bytes, where: _Place) -> bytes:
        if not self.case_hack:
            return name
        try:
            names = [os.fsencode(entry) for entry in os.listdir(fd)]
        except OSError as error:
            raise _failure(where, error) from error
        return next((disk for disk in names if _CASE_HACK.sub(b"", disk) == name), name)

    def _open_store(self, path: StorePath) -> int:
        try:
            return os.open(self.store_dir, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise StoreReadError(
                f"cannot read {path}: the store {self.store_dir}: {error.strerror}",
                hint="is Nix installed here? a store elsewhere is named by DirectoryReader(store_dir)",
            ) from error


class _Child:
    """A directory entry: its name on disk, and its name relative to the store path."""

    __slots__ = ("disk", "name")

    def __init__(self, disk: bytes, name: bytes) -> None:
        self.disk = disk
        self.name = name


class _Directory:
    """An open directory and what is still to come of it."""

    __slots__ = ("children", "fd")

    def __init__(self, fd: int, children: Iterator[_Child]) -> None:
        self.fd = fd
        self.children = children

    def close(self) -> None:
        # content that is asked for too late must not meet a directory that got the number since
        fd, self.fd = self.fd, -1
        os.close(fd)


class _Place:
    """Where something is, as text for errors; made for every file, so it is put together only when asked."""

    __slots__ = ("name", "path", "store_dir")

    def __init__(self, store_dir: str, path: StorePath, name: bytes) -> None:
        self.store_dir = store_dir
        self.path = path
        self.name = name

    def __str__(self) -> str:
        shown = self.name.decode(errors="backslashreplace")
        return "/".join(part for part in (self.store_dir.rstrip("/"), self.path.base, shown) if part)


def _contents(directory: _Directory, disk: bytes, size: int, where: _Place) -> Callable[[], Iterator[bytes]]:
    if size < PIECE:
        return functools.partial(_small, directory, disk, size, where)
    return functools.partial(_pieces, directory, disk, where)


def _small(directory: _Directory, disk: bytes, size: int, where: _Place) -> Iterator[bytes]:
    fd = _open(disk, _OPEN_FILE, directory.fd, where)
    try:
        # one byte more than there should be: a file that grows must not pass
        return iter((_read(fd, size + 1, where, least=size),))
    finally:
        os.close(fd)


def _pieces(directory: _Directory, disk: bytes, where: _Place) -> Iterator[bytes]:
    fd = _open(disk, _OPEN_FILE, directory.fd, where)
    try:
        while piece := _read(fd, PIECE, where):
            yield piece
    finally:
        os.close(fd)


def _open(disk: bytes, flags: int, directory: int, where: _Place) -> int:
    try:
        return os.open(disk, flags, dir_fd=directory)
    except OSError as error:
        raise _failure(where, error) from error


def _read(fd: int, size: int, where: _Place, least: int | None = None) -> bytes:
    """Return up to *size* bytes, fewer than *least* only at the end of the file."""
    enough = size if least is None else least
    try:
        data = os.read(fd, size)
        while data and len(data) < enough and (more := os.read(fd, size - len(data))):
            data += more
    except OSError as error:
        raise _failure(where, error) from error
    return data


def _failure(where: _Place, error: OSError) -> StoreReadError:
    hint = ""
    if error.errno == errno.ENOENT:
        hint = "build or fetch the path first, and keep it from garbage collection while it is archived"
    elif error.errno in (errno.ELOOP, errno.ENOTDIR):
        hint = "it is no regular file or directory, or it changed while it was read"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as a user who may read the store"
    elif error.errno == errno.EBADF:
        hint = "take the contents of an entry before the next entry"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise the limit of open files (ulimit -n)"
    return StoreReadError(f"cannot read {where}: {error.strerror}", hint=hint)

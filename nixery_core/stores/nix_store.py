"""Store paths as files in a directory: the store that Nix keeps on this machine, or a copy of it."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

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
# what a name stands for, as plain numbers
_FILE, _DIRECTORY, _LINK, _OTHER = range(4)
_KIND = {stat.S_IFREG: _FILE, stat.S_IFDIR: _DIRECTORY, stat.S_IFLNK: _LINK}
_Child: TypeAlias = tuple[bytes, bytes, int]
"""A directory entry: its name on disk, its name relative to the store path, and what it stands for."""
_REGULAR = EntryType.REGULAR
_ENCODING, _ENCODING_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
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
        store = self._open_store(path)
        stack = [_Directory(store, b"", iter([self._root(store, path)]))]
        try:
            while stack:
                directory = stack[-1]
                child = next(directory.children, None)
                if child is None:
                    stack.pop().close()
                    continue
                disk, name, kind = child
                try:
                    if kind == _FILE:
                        yield self._file(directory, disk, name, path, with_contents)
                    elif kind == _DIRECTORY:
                        yield StoreEntry(name=name, type=EntryType.DIRECTORY)
                        stack.append(self._enter(directory, disk, name, path))
                    elif kind == _LINK:
                        yield StoreEntry(
                            name=name, type=EntryType.SYMLINK, target=os.readlink(disk, dir_fd=directory.fd)
                        )
                    else:
                        raise self._special(_Place(self.store_dir, path, name), os.lstat(disk, dir_fd=directory.fd))
                except OSError as error:
                    raise _failure(_Place(self.store_dir, path, name), error) from error
        finally:
            for directory in stack:
                directory.close()

    def _root(self, store: int, path: StorePath) -> _Child:
        disk = os.fsencode(path.base)
        try:
            mode = os.lstat(disk, dir_fd=store).st_mode
        except OSError as error:
            os.close(store)
            raise _failure(_Place(self.store_dir, path, b""), error) from error
        return disk, b"", _KIND.get(stat.S_IFMT(mode), _OTHER)

    def _file(
        self, directory: _Directory, disk: bytes, name: bytes, path: StorePath, with_contents: bool
    ) -> StoreEntry:
        data: bytes | None = None
        contents: Callable[[], Iterator[bytes]] | None = None
        if not with_contents:
            status = os.lstat(disk, dir_fd=directory.fd)
        else:
            fd = os.open(disk, _OPEN_FILE, dir_fd=directory.fd)
            try:
                status = os.fstat(fd)
                size = status.st_size
                if size < PIECE:
                    # one byte more than there should be: a file that grows must not pass
                    data = os.read(fd, size + 1)
                    while 0 < len(data) < size and (more := os.read(fd, size + 1 - len(data))):
                        data += more
            finally:
                os.close(fd)
            if data is None:
                contents = functools.partial(_pieces, directory, disk, _Place(self.store_dir, path, name))
        mode = status.st_mode
        if not stat.S_ISREG(mode):
            raise self._special(_Place(self.store_dir, path, name), status)
        return StoreEntry(
            name=name,
            type=_REGULAR,
            executable=mode & stat.S_IXUSR != 0,
            size=status.st_size,
            data=data,
            contents=contents,
        )

    def _enter(self, directory: _Directory, disk: bytes, name: bytes, path: StorePath) -> _Directory:
        inner = _Directory(os.open(disk, _OPEN_DIRECTORY, dir_fd=directory.fd), name + b"/" if name else b"", iter(()))
        try:
            inner.children = iter(self._children(inner, path, name))
        except BaseException:
            inner.close()
            raise
        return inner

    def _special(self, where: _Place, status: os.stat_result) -> StoreReadError:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        return StoreReadError(
            f"{where} is a {kind}",
            hint="a store path holds files, directories and symbolic links only: build it again",
        )

    def _children(self, directory: _Directory, path: StorePath, name: bytes) -> list[_Child]:
        # the listing tells what each name is, which spares a call of the system for every file
        with os.scandir(directory.fd) as entries:
            found = [
                (
                    entry.name.encode(_ENCODING, _ENCODING_ERRORS),
                    _FILE
                    if entry.is_file(follow_symlinks=False)
                    else _DIRECTORY
                    if entry.is_dir(follow_symlinks=False)
                    else _LINK
                    if entry.is_symlink()
                    else _OTHER,
                )
                for entry in entries
            ]
        prefix = directory.prefix
        if not self.case_hack:
            found.sort()
            return [(disk, prefix + disk, kind) for disk, kind in found]
        real = {_CASE_HACK.sub(b"", disk): (disk, kind) for disk, kind in found}
        if len(real) != len(found):
            where = _Place(self.store_dir, path, name)
            raise StoreReadError(f"{where} holds two files of one name but for Nix's case suffix")
        return [(disk, prefix + clean, kind) for clean, (disk, kind) in sorted(real.items())]

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


class _Directory:
    """An open directory and what is still to come of it."""

    __slots__ = ("children", "fd", "prefix")

    def __init__(self, fd: int, prefix: bytes, children: Iterator[_Child]) -> None:
        self.fd = fd
        self.prefix = prefix
        """What stands before the names of its children, relative to the store path."""
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

"""Blobs and cache entries as files in a directory of this machine."""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

from nixery_core.errors import InvalidConfig, ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.storage import _files
from nixery_core.storage.backend import BackendRef, ObjectInfo
from nixery_core.storage.keys import BLOBS, CACHE, blob_key, check_key, check_prefix, check_staging_key, staging_key

_PIECE = 1 << 20
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalBackend:
    """Keeps objects as files under *root*; a :class:`~nixery_core.storage.backend.Backend`.

    Any number of threads and processes may use one directory at once.  Every object is written to
    ``staging/`` in the same directory, brought to the disk, and then renamed or linked into its
    place, so neither a reader nor a power cut ever sees a part of it.  The names of blobs are
    brought to the disk together, before that of an image that needs them.  Nothing is created before
    the first write.  Files get the permissions that the umask leaves, as any program's files do:
    whoever runs the program decides whether others may read the images.

    Args:
        root: The directory; a relative path is meant from the current directory.

    Raises:
        InvalidConfig: For an empty path.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not os.fspath(root):
            raise InvalidConfig("the path of the storage is empty", hint="name a directory")
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links

    @property
    def root(self) -> Path:
        """The directory, absolute."""
        return self._root

    @property
    def ref(self) -> BackendRef:
        """How to open this backend again, on any machine that has the directory."""
        return BackendRef(self._root.as_uri())

    def __repr__(self) -> str:
        return f"LocalBackend({str(self._root)!r})"

    def open_blob(self) -> LocalBlobWriter:
        """Begin a blob."""
        return LocalBlobWriter(self._root)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: ARG002
        """Put a small object if there is none under *key*; return whether this call created it."""
        path = self._path(key)
        with _files.mapped(key, self._root):
            if path.is_file():
                return False
            with self._staged(data) as staged:
                _files.make_directories(path.parent)
                return _files.publish_new(staged, path, lock=self._root, sync=self._sync_blobs(key))

    def replace(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002
        """Put a small object, atomically in the place of what is there."""
        path = self._path(key)
        with _files.mapped(key, self._root), self._staged(data) as staged:
            _files.make_directories(path.parent)
            _files.publish(staged, path, sync=self._sync_blobs(key))

    def get(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFound."""
        path = self._path(key)
        with _files.mapped(key, self._root):
            try:
                return path.read_bytes()
            except _NOT_THERE:
                raise _not_found(key) from None

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the bytes of an object from *start* to before *end* in pieces; raises ObjectNotFound.

        What is not there raises at once, before the first piece is asked for.
        """
        if self.stat(key) is None:
            raise _not_found(key)
        return self._pieces(key, max(start, 0), end)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        path = self._path(key)
        with _files.mapped(key, self._root):
            try:
                status = path.stat()
            except _NOT_THERE:
                return None
        return ObjectInfo(key, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give every object whose key begins with *prefix* (which ends with ``/``, or is empty), sorted by key."""
        return self._walk(check_prefix(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        path = self._path(key)
        with _files.mapped(key, self._root), contextlib.suppress(*_NOT_THERE):
            path.unlink()

    def local_file(self, key: str) -> Path | None:
        """Return the file of an object to read, or None where there is none."""
        path = self._path(key)
        with _files.mapped(key, self._root):
            return path if path.is_file() else None

    def publish(self, staged: str, digest: Digest) -> None:
        """Make the object under the key *staged*, which is in ``staging/``, the blob *digest*."""
        key = blob_key(digest)
        source, target = self._path(check_staging_key(staged)), self._root / key
        if not source.is_file():
            raise _not_found(staged)
        with _files.mapped(key, self._root):
            _files.make_directories(target.parent)
            _files.publish(source, target, sync=False)

    def creates_atomically(self) -> bool:
        """Return True: the file system links a name once."""
        return True

    def _sync_blobs(self, key: str) -> bool:
        """Return whether the name of *key* has to survive a power cut; then those of all blobs do from now on.

        A blob or a cache entry whose name is lost is a miss, and made again; a name of an image is
        a promise that its blobs are there.
        """
        if key.startswith((BLOBS, CACHE)):
            return False
        _files.sync_names(self._root / BLOBS)
        return True

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        path = self._root / staging_key()
        fd = _files.create_file(path)
        try:
            try:
                _files.write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        with _files.mapped(key, self._root):
            try:
                file = self._path(key).open("rb", buffering=0)
            except _NOT_THERE:
                raise _not_found(key) from None
        with file:
            file.seek(start)
            missing = None if end is None else end - start
            while missing is None or missing > 0:
                with _files.mapped(key, self._root):
                    piece = file.read(_PIECE if missing is None else min(_PIECE, missing))
                if not piece:
                    return
                if missing is not None:
                    missing -= len(piece)
                yield piece

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        with _files.mapped(prefix, self._root):
            try:
                with os.scandir(self._root / prefix) as entries:
                    # a directory sorts as its keys do, with the slash behind its name
                    found = sorted(
                        (entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry) for entry in entries
                    )
            except _NOT_THERE:
                return
        for name, entry in found:
            if name.endswith("/"):
                yield from self._walk(prefix + name)
                continue
            with _files.mapped(prefix + name, self._root):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
            if stat.S_ISREG(status.st_mode):
                yield ObjectInfo(prefix + name, status.st_size, status.st_mtime)


class LocalBlobWriter:
    """One blob on its way into a :class:`LocalBackend`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._key = staging_key()
        self._path = root / self._key
        self._fd: int | None = None
        self._open = True
        # a writer that is dropped takes its file along, also at the end of the program
        self._discard: weakref.finalize[[int, Path, int], LocalBlobWriter] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; raises StorageError."""
        with _files.mapped(self._key, self._root):
            _files.write_all(self._file(), data)

    def commit(self, digest: Digest) -> None:
        """Publish what was written as the blob *digest*; raises StorageError.

        A blob that is there already is replaced by the same bytes: that makes it young for whoever
        removes old blobs, and mends one that is damaged.
        """
        key = blob_key(digest)
        target = self._root / key
        try:
            with _files.mapped(key, self._root):
                os.fsync(self._file())
                _files.make_directories(target.parent)
                _files.publish(self._path, target, sync=False)
        finally:
            self._close()

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel."""
        self._close()

    def _file(self) -> int:
        if not self._open:
            raise _files.blob_is_over(self._key)
        if self._fd is None:
            self._fd = _files.create_file(self._path)
            self._discard = weakref.finalize(self, _files.discard, self._fd, self._path, os.getpid())
        return self._fd

    def _close(self) -> None:
        self._open = False
        if self._discard is not None:
            self._discard()


def _not_found(key: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is no object {key}", key=key)

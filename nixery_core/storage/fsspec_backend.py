"""Blobs and cache entries in any storage that fsspec reaches; the only module that calls fsspec's file systems."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import IO, Any, Literal

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractBufferedFile

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage._files import storage_error
from nixery_core.storage._filesystems import FileSystems
from nixery_core.storage.backend import BackendRef, ObjectInfo
from nixery_core.storage.keys import blob_key, check_key, check_prefix, check_staging_key, staging_key

SPOOL = 16 << 20
"""Bytes of a blob that are kept in memory; what is larger waits in a temporary file of this machine."""
BLOCK = 8 << 20
"""Bytes that go to or come from the storage at once."""

_TRIES = 5
_READ_ONLY = "it can be read, but not be written to"
# of a server that takes no PUT (RFC 9110)
_REFUSED = (403, 405, 501)
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# fsspec's memory looks first and writes then; two threads of one process must not do both at once
_CREATE = threading.Lock()


class FsspecBackend:
    """Keeps objects in a file system of fsspec; a :class:`~nixery_core.storage.backend.Backend`.

    Blobs up to 16 MiB are put under their key in one call where the file system can do that.
    Others wait in memory, or in an unnamed temporary file, until their digest is known, go to
    ``staging/`` and are moved into their place.

    :meth:`create` is decided by the storage itself where fsspec can ask it to (memory, Azure), and
    over SFTP.  Elsewhere it looks first and writes then: of two processes that do so in the same
    moment, the second wins.  Content types are not kept: fsspec has no common way to say them.

    Args:
        url: The place of the storage, such as ``memory://images``.
        options: Keyword arguments of the file system.

    Raises:
        InvalidConfig: For options that the file system does not take.
        StorageError: Where the file system cannot be opened.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._ref = BackendRef(url, options or {})
        with _mapped("", url):
            self._filesystems = FileSystems(url, self._ref.options)
        self._base = f"{self._filesystems.root}/" if self._filesystems.root else ""
        self._creates = _creates(self._filesystems.type)

    @property
    def ref(self) -> BackendRef:
        """How to open this backend again; objects in memory are found in the same process only."""
        return self._ref

    def __repr__(self) -> str:
        return f"FsspecBackend({redact(self._ref.url)!r})"

    def open_blob(self) -> FsspecBlobWriter:
        """Begin a blob."""
        return FsspecBlobWriter(self)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: ARG002
        """Put a small object if there is none under *key*; return whether this call created it."""
        path = self._path(key)
        with self._lent(key) as fs, _CREATE if not fs.async_impl else contextlib.nullcontext():
            if self._creates:
                try:
                    fs.pipe_file(path, data, mode="create")
                except FileExistsError:
                    return False
                return True
            if fs.exists(path):
                return False
            return self._put_through_staging(fs, path, data, only_new=True)

    def replace(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002
        """Put a small object, atomically in the place of what is there."""
        path = self._path(key)
        with self._lent(key) as fs:
            if self._creates:
                fs.pipe_file(path, data)
            else:
                self._put_through_staging(fs, path, data)

    def get(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFound."""
        with self._lent(key) as fs:
            try:
                return bytes(fs.cat_file(self._path(key)))
            except OSError as error:
                # SFTP does not say that it was asked to read a directory
                if isinstance(error, _NOT_THERE) or fs.isdir(self._path(key)):
                    raise _not_found(key) from error
                raise

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the bytes of an object from *start* to before *end* in pieces; raises ObjectNotFound.

        What is not there raises at once, before the first piece is asked for.
        """
        info = self.stat(key)
        if info is None:
            raise _not_found(key)
        return self._pieces(key, max(start, 0), info.size if end is None else min(end, info.size))

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        path = self._path(key)
        with self._lent(key) as fs:
            try:
                info = fs.info(path)
            except _NOT_THERE:
                return None
        return _object_info(key, info) if info.get("type") == "file" else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give every object whose key begins with *prefix* (which ends with ``/``, or is empty), sorted by key."""
        base = self._base
        with self._lent(check_prefix(prefix)) as fs:
            try:
                found = fs.find((base + prefix).rstrip("/"), detail=True)
            except _NOT_THERE:
                found = {}
        infos = {str(path).removeprefix(base): info for path, info in found.items() if str(path).startswith(base)}
        return iter([_object_info(key, infos[key]) for key in sorted(infos) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        path = self._path(key)
        with self._lent(key) as fs, contextlib.suppress(*_NOT_THERE):
            fs.rm_file(path)

    def signed_url(
        self, key: str, *, method: Literal["GET", "HEAD"] = "GET", expires: int = 3600, content_type: str | None = None
    ) -> str | None:
        """Return a URL that answers GET for an object where fsspec can sign one, or else None."""
        path = self._path(key)
        # fsspec has no common way to sign for another method or to say a type
        if method != "GET" or content_type is not None:
            return None
        with self._lent(key) as fs:
            try:
                return str(fs.sign(path, expiration=expires))
            except NotImplementedError:
                return None

    def publish(self, staged: str, digest: Digest) -> None:
        """Make the object under the key *staged*, which is in ``staging/``, the blob *digest*."""
        key = blob_key(digest)
        if self.stat(check_staging_key(staged)) is None:
            raise _not_found(staged)
        with self._lent(key) as fs:
            self._move(fs, self._path(staged), self._path(key), only_new=False)

    def creates_atomically(self) -> bool:
        """Return whether the storage itself refuses an existing object; it does not ask the server."""
        return self._creates or "sftp" in _protocols(self._filesystems.type)

    def _path(self, key: str) -> str:
        return self._base + check_key(key)

    @contextlib.contextmanager
    def _lent(self, key: str) -> Iterator[AbstractFileSystem]:
        with _mapped(key, self._ref.url), self._filesystems.lent() as fs:
            yield fs

    def _pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        # ranges of the whole object: fsspec's file objects in memory share one position between all readers
        while start < end:
            stop = min(start + BLOCK, end)
            with self._lent(key) as fs:
                piece = bytes(fs.cat_file(self._path(key), start=start, end=stop))
            if len(piece) > stop - start:
                # a web server that knows no ranges sends all
                yield piece[start:end]
                return
            if not piece:
                raise StorageError(f"the object {key} became shorter while it was read", key=key)
            start += len(piece)
            yield piece

    def _put_blob(self, digest: Digest, spool: IO[bytes], size: int) -> None:
        key = blob_key(digest)
        stored = self.stat(key)
        if stored is not None and stored.size == size:
            return
        path = self._path(key)
        with self._lent(key) as fs:
            spool.seek(0)
            # what is kept in memory by the storage may as well be there in one piece
            if self._creates and (size <= SPOOL or "memory" in _protocols(fs)):
                fs.pipe_file(path, spool.read())
            else:
                self._put_through_staging(fs, path, spool, size=size)

    def _put_through_staging(
        self,
        fs: AbstractFileSystem,
        path: str,
        data: bytes | IO[bytes],
        *,
        size: int = 0,
        only_new: bool = False,
    ) -> bool:
        staged = self._path(staging_key())
        try:
            _make_directories(fs, fs._parent(staged))
            _upload(fs, staged, data)
            _check_size(fs, staged, len(data) if isinstance(data, bytes) else size)
            return self._move(fs, staged, path, only_new=only_new)
        except BaseException:
            self._remove_staged(fs, staged)
            raise

    def _remove_staged(self, fs: AbstractFileSystem, staged: str) -> None:
        # the first error is the one to tell; what cannot be removed now is left to whoever empties staging/
        with contextlib.suppress(Exception):
            try:
                fs.rm_file(staged)
            except Exception:  # noqa: BLE001
                # the connection may be what broke: then another one can
                with self._filesystems.lent() as another:
                    another.rm_file(staged)

    def _move(self, fs: AbstractFileSystem, staged: str, path: str, *, only_new: bool) -> bool:
        _make_directories(fs, fs._parent(path))
        rename = getattr(getattr(fs, "ftp", None), "rename", None)
        if not only_new or "sftp" not in _protocols(fs) or rename is None:
            fs.mv(staged, path)
            return True
        try:
            # the rename of SFTP, unlike that of POSIX, never takes the place of a file
            # (draft-ietf-secsh-filexfer-02, 6.5); fs.mv() asks for the other one
            rename(staged, path)
        except OSError:
            if not fs.exists(path):
                raise
            fs.rm_file(staged)
            return False
        return True


def _upload(fs: AbstractFileSystem, path: str, data: bytes | IO[bytes]) -> None:
    # What breaks off may be seen in staging/, so commit() and discard() of fsspec are not needed: their
    # temporary file may lie on another disk.  _open(), unlike open(), keeps nothing in fs.transaction.
    file = fs._open(path, "wb", block_size=BLOCK)
    if hasattr(file, "set_pipelined"):
        # of SFTP: do not wait for the answer to each 32 KiB; the size tells whether one was an error
        file.set_pipelined(True)
    try:
        if isinstance(data, bytes):
            file.write(data)
        else:
            shutil.copyfileobj(data, file, BLOCK)
        file.close()
    except BaseException:
        _abandon(file)
        raise


def _check_size(fs: AbstractFileSystem, path: str, size: int) -> None:
    # some file systems do not tell that the last piece could not be written
    found = int(fs.info(path)["size"])
    if found != size:
        raise StorageError(f"{path}: {size} bytes were sent, and {found} arrived")


def _make_directories(fs: AbstractFileSystem, path: str) -> None:
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


class FsspecBlobWriter:
    """One blob on its way into a :class:`FsspecBackend`."""

    def __init__(self, backend: FsspecBackend) -> None:
        self._backend = backend
        self._size = 0
        # it has no name: it is gone with its last handle, whatever happens
        self._spool: IO[bytes] | None = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115 - closed by _close()
        self._discard = weakref.finalize(self, self._spool.close)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; raises StorageError."""
        spool = self._file()
        try:
            spool.write(data)
        except OSError as error:
            raise storage_error("a large blob", tempfile.gettempdir(), error) from error
        self._size += len(data)

    def commit(self, digest: Digest) -> None:
        """Publish what was written as the blob *digest*; an existing blob is success; raises StorageError."""
        try:
            self._backend._put_blob(digest, self._file(), self._size)
        finally:
            self._close()

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel."""
        self._close()

    def _file(self) -> IO[bytes]:
        if self._spool is None:
            raise StorageError("the blob is committed or cancelled already", hint="open another one")
        return self._spool

    def _close(self) -> None:
        self._spool = None
        self._discard()


@contextlib.contextmanager
def _mapped(key: str, url: str) -> Iterator[None]:
    """Turn whatever a file system raises into StorageErrors that name *key* and *url*."""
    try:
        yield
    except (StorageError, InvalidConfig):
        raise
    except FileNotFoundError as error:
        raise ObjectNotFound(f"there is no object {key} in {url}", key=key) from error
    except OSError as error:
        if error.errno is None and "reading or writing" in str(error):
            # an archive of fsspec is open for one of them
            raise StorageError(f"{key} in {url}: {error}", key=key, hint=_READ_ONLY) from error
        raise storage_error(key, url, error) from error
    except Exception as error:
        # every storage has a library with exceptions of its own
        refused = isinstance(error, NotImplementedError) or getattr(error, "status", 0) in _REFUSED
        hint = _READ_ONLY if refused else ""
        raise StorageError(
            f"{key or 'the storage'} in {url}: {type(error).__name__}: {error}", key=key, hint=hint
        ) from error


def _not_found(key: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is no object {key}", key=key)


def _creates(fs: type[AbstractFileSystem]) -> bool:
    """Return whether *fs* puts an object in one call, and refuses if there is one when asked to."""
    put = getattr(fs, "_pipe_file" if issubclass(fs, AsyncFileSystem) else "pipe_file")
    if put is AbstractFileSystem.pipe_file:
        return False
    return "mode" in inspect.signature(put).parameters


def _protocols(fs: AbstractFileSystem | type[AbstractFileSystem]) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


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


def _object_info(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    modified = next(
        (info[name] for name in ("mtime", "LastModified", "last_modified", "created") if info.get(name)), None
    )
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    return ObjectInfo(key, int(info["size"]), float(modified) if isinstance(modified, int | float) else None)

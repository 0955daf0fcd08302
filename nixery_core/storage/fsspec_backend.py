"""Blobs and cache entries in any storage that fsspec reaches."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import IO, Any, Literal

from fsspec import AbstractFileSystem

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, InvalidKey, ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage._files import blob_is_over, storage_error
from nixery_core.storage._filesystems import FileSystems, file_system_type
from nixery_core.storage._fsspec_errors import NO_CONTAINER, mapped, secrets_of, status_of
from nixery_core.storage._fsspec_traits import BLOCK, Traits, traits_of
from nixery_core.storage._fsspec_upload import make_directories, upload
from nixery_core.storage.backend import BackendRef, ObjectInfo
from nixery_core.storage.keys import blob_key, check_key, check_prefix, check_staging_key, staging_key

SPOOL = 16 << 20
"""Bytes of a blob that are kept in memory; what is larger waits in a temporary file of this machine."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# fsspec's memory looks first and writes then; two threads of one process must not do both at once
_CREATE = threading.Lock()


class FsspecBackend:
    """Keeps objects in a file system of fsspec; a :class:`~nixery_core.storage.backend.Backend`.

    Blobs up to 16 MiB are put under their key in one call where the file system can do that.
    Others wait in memory, or in an unnamed temporary file, until their digest is known, go to
    ``staging/`` and are moved into their place; in Azure, where a blob that is being written is
    nowhere before it is whole, they go to their place at once.

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
        self._secrets = secrets_of(self._ref.options)
        self._traits = Traits()
        with self._mapped(""):
            self._traits = traits_of(file_system_type(url))
        with self._mapped(""):
            self._filesystems = FileSystems(url, self._ref.options)
        self._secrets += self._filesystems.secrets
        root = self._filesystems.root
        self._base = f"{root}/" if root else ""
        self._container = root.partition("/")[0] if self._traits.container else ""
        self._container_seen = False
        if self._traits.container and not self._container:
            raise InvalidConfig(f"{redact(url)!r} names no container", hint="write az://container/prefix")

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
            if self._traits.only_new is not None:
                return self._put_new(fs, path, data, self._traits.only_new)
            if fs.exists(path):
                return False
            return self._put_through_staging(fs, path, [data], len(data), only_new=True)

    def replace(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002
        """Put a small object, atomically in the place of what is there."""
        path = self._path(key)
        with self._lent(key) as fs:
            if self._traits.only_new is not None:
                fs.pipe_file(path, data)
            else:
                self._put_through_staging(fs, path, [data], len(data), only_new=False)

    def get(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFound."""
        with self._lent(key) as fs:
            try:
                return bytes(fs.cat_file(self._path(key)))
            except OSError as error:
                # SFTP does not say that it was asked to read a directory
                if isinstance(error, _NOT_THERE) or fs.isdir(self._path(key)):
                    self._check_container(fs)
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
                self._check_container(fs)
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
            if not isinstance(found, Mapping):
                # adlfs, where the prefix itself is an object
                found = {}
            if not found:
                self._check_container(fs)
        infos = {str(path).removeprefix(base): info for path, info in found.items() if str(path).startswith(base)}
        return iter([_object_info(key, infos[key]) for key in sorted(infos) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        path = self._path(key)
        with self._lent(key) as fs:
            try:
                fs.rm_file(path)
            except _NOT_THERE:
                self._check_container(fs)

    def signed_url(
        self, key: str, *, method: Literal["GET", "HEAD"] = "GET", expires: int = 3600, content_type: str | None = None
    ) -> str | None:
        """Return a URL that answers GET for an object where fsspec can sign one, or else None."""
        path = self._path(key)
        if expires <= 0:
            raise InvalidConfig(f"a signed URL cannot be good for {expires} seconds", hint="take 1 or more")
        # fsspec has no common way to sign for another method or to say a type
        if method != "GET" or content_type is not None:
            return None
        with self._lent(key) as fs:
            try:
                return str(fs.sign(path, expiration=expires))
            except (NotImplementedError, ValueError):
                # the file system cannot, or not with these credentials
                return None

    def publish(self, staged: str, digest: Digest) -> None:
        """Make the object under the key *staged*, which is in ``staging/``, the blob *digest*."""
        key = blob_key(digest)
        info = self.stat(check_staging_key(staged))
        if info is None:
            raise _not_found(staged)
        with self._lent(key) as fs:
            if self._traits.whole_on_close:
                # their way to move may be a copy that goes on when it has been answered
                self._put_whole(fs, self._path(key), self._pieces(staged, 0, info.size), info.size)
                fs.rm_file(self._path(staged))
            else:
                self._move(fs, self._path(staged), self._path(key), only_new=False)

    def creates_atomically(self) -> bool:
        """Return whether the storage itself refuses an existing object; it does not ask the server."""
        return self._traits.only_new is not None or self._traits.rename_refuses

    def _path(self, key: str) -> str:
        path = self._base + check_key(key)
        if self._container:
            # adlfs takes the one for a host with a port, when it has written, and the other for a version
            if self._base == f"{self._container}/" and ":" in key.partition("/")[0]:
                raise InvalidKey(
                    f"{key!r} cannot be at the top of a container", key=key, hint="keep the storage in a folder of it"
                )
            if "?versionid=" in key:
                raise InvalidKey(
                    f"{key!r} cannot be a key in a container", key=key, hint="take one without ?versionid="
                )
        return path

    def _mapped(self, key: str) -> contextlib.AbstractContextManager[None]:
        return mapped(key, redact(self._ref.url), self._traits, self._secrets)

    @contextlib.contextmanager
    def _lent(self, key: str) -> Iterator[AbstractFileSystem]:
        with self._mapped(key), self._filesystems.lent() as fs:
            yield fs

    def _check_container(self, fs: AbstractFileSystem) -> None:
        """Raise if there is no container: nothing is found in it, as in one that is empty."""
        if self._container and not self._container_seen:
            try:
                fs.info(self._container)
            except FileNotFoundError as error:
                raise StorageError(
                    f"{redact(self._ref.url)}: there is no container {self._container}", hint=NO_CONTAINER
                ) from error
            except Exception as error:
                # who may not ask this may still read and write
                if status_of(error) != 403:
                    raise
            self._container_seen = True

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
            if self._traits.only_new is not None and (size <= SPOOL or self._traits.in_memory):
                fs.pipe_file(path, spool.read())
                return
            pieces = iter(lambda: spool.read(self._traits.write), b"")
            if self._traits.whole_on_close:
                self._put_whole(fs, path, pieces, size)
            else:
                self._put_through_staging(fs, path, pieces, size, only_new=False)

    def _put_new(self, fs: AbstractFileSystem, path: str, data: bytes, only_new: Mapping[str, Any]) -> bool:
        mark = str(uuid.uuid4())
        marked = self._traits.marked(mark) if self._traits.marked is not None else {}
        try:
            fs.pipe_file(path, data, **only_new, **marked)
        except FileExistsError:
            # whose answer is lost sends the request again, by itself, and meets what the first one has left
            with contextlib.suppress(*_NOT_THERE):
                return bool(marked) and (fs.info(path).get("metadata") or {}).get("writer") == mark
            return False
        return True

    def _put_whole(self, fs: AbstractFileSystem, path: str, pieces: Iterable[bytes], size: int) -> None:
        try:
            upload(fs, path, pieces, size, self._traits.block)
        except Exception:
            # of two who write one blob at once the first is done, and what the second has sent is dropped
            with contextlib.suppress(Exception):
                if int(fs.info(path)["size"]) == size:
                    return
                fs.rm_file(path)
            raise

    def _put_through_staging(
        self, fs: AbstractFileSystem, path: str, pieces: Iterable[bytes], size: int, *, only_new: bool
    ) -> bool:
        staged = self._path(staging_key())
        try:
            make_directories(fs, fs._parent(staged))
            upload(fs, staged, pieces, size, self._traits.block)
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
        make_directories(fs, fs._parent(path))
        rename = getattr(getattr(fs, "ftp", None), "rename", None)
        if not only_new or not self._traits.rename_refuses or rename is None:
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
            raise blob_is_over()
        return self._spool

    def _close(self) -> None:
        self._spool = None
        self._discard()


def _not_found(key: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is no object {key}", key=key)


def _object_info(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    modified = next(
        (info[name] for name in ("mtime", "LastModified", "last_modified", "created") if info.get(name)), None
    )
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    return ObjectInfo(key, int(info["size"]), float(modified) if isinstance(modified, int | float) else None)

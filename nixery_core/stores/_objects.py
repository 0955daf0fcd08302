"""The files of a binary cache, by name: over HTTP, from a directory, or through any file system of fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import attrs
import fsspec
from fsspec import AbstractFileSystem

from nixery_core._redact import redact
from nixery_core.errors import BinaryCacheError, InvalidConfig

MOST_SMALL = 4 << 20
"""Most bytes of a narinfo and its like, unpacked: whoever writes it shall not fill our memory."""
INFO = "nix-cache-info"
"""The file that makes a directory a binary cache."""
PIECE = 1 << 20
"""Bytes of a large file that are in memory at once, where the other side gives that many."""
BLOCK = 8 << 20
"""Bytes that are asked of an object storage at once."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Objects(Protocol):
    """The files of one cache; used by several threads at once."""

    def get(self, name: str, most: int) -> bytes | None:
        """Return a file of at most *most* bytes whole, or None where there is none; raises BinaryCacheError."""
        ...

    @property
    def batch(self) -> int | None:
        """How many names :meth:`get_many` likes to have at once; None where :meth:`get` in threads is the way."""
        ...

    def get_many(self, names: Sequence[str]) -> list[bytes | BinaryCacheError | None]:
        """Return small files in the order asked, None for those that are not there, errors for those that fail."""
        ...

    def stream(self, name: str) -> Iterator[bytes]:
        """Give a file in pieces; raises BinaryCacheError, also where there is none."""
        ...


def open_objects(url: str, options: Mapping[str, Any], *, timeout: float, retries: int, connections: int) -> Objects:
    """Return the files below *url*; raises InvalidConfig for options that they do not take."""
    if url.startswith(("http://", "https://")):
        from nixery_core.stores._http_objects import HttpObjects

        return HttpObjects(url, options, timeout=timeout, retries=retries, connections=connections)
    if url.startswith("file:") or "://" not in url:
        if options:
            raise InvalidConfig(f"the binary cache {redact(url)} is a directory and takes no options")
        return DirectoryObjects(_directory(url))
    return FsspecObjects.open(url, options, connections=connections)


def _directory(url: str) -> Path:
    return Path(unquote(url.removeprefix("file:").removeprefix("//"))) if url.startswith("file:") else Path(url)


@attrs.frozen
class DirectoryObjects:
    """A cache in a directory of this machine."""

    directory: Path

    def get(self, name: str, most: int) -> bytes | None:
        """Return a file of at most *most* bytes whole, or None where there is none; raises BinaryCacheError."""
        path = self.directory / name
        try:
            with path.open("rb", buffering=0) as file:
                data = file.read(most + 1)
        except _NOT_THERE:
            return None
        except OSError as error:
            raise _unreadable(str(path), error) from error
        return checked_size(data, most, str(path))

    @property
    def batch(self) -> int:
        """One at a time: opening a file waits for nothing."""
        return 1

    def get_many(self, names: Sequence[str]) -> list[bytes | BinaryCacheError | None]:
        """Return small files in the order asked, None for those that are not there, errors for those that fail."""
        return [outcome(self, name) for name in names]

    def stream(self, name: str) -> Iterator[bytes]:
        """Give a file in pieces; raises BinaryCacheError, also where there is none."""
        path = self.directory / name
        try:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    yield piece
        except _NOT_THERE:
            raise not_there(str(path)) from None
        except OSError as error:
            raise _unreadable(str(path), error) from error


@attrs.frozen
class FsspecObjects:
    """A cache in an object storage, or whatever else fsspec reaches; its library repeats what fails."""

    filesystem: AbstractFileSystem
    root: str
    url: str
    connections: int

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any], *, connections: int) -> FsspecObjects:
        """Return the files below *url*."""
        try:
            filesystem, root = fsspec.url_to_fs(url, **{"use_listings_cache": False, **options})
        except (TypeError, ValueError, ImportError) as error:
            raise InvalidConfig(
                f"the binary cache {redact(url)} cannot be opened: {error}",
                hint="check the URL and the options, and install the package that fsspec names for it",
            ) from error
        return cls(filesystem, str(root).rstrip("/"), url, connections)

    @property
    def batch(self) -> int:
        """As many as keep every connection busy for a while."""
        return 16 * self.connections

    def get(self, name: str, most: int) -> bytes | None:
        """Return a file of at most *most* bytes whole, or None where there is none; raises BinaryCacheError."""
        try:
            data = self.filesystem.cat_file(f"{self.root}/{name}", end=most + 1)
        except Exception as error:
            # every storage has a library with exceptions of its own
            if self._missing(name, error):
                return None
            raise _unreadable(self._where(name), error) from error
        return checked_size(data, most, self._where(name))

    def get_many(self, names: Sequence[str]) -> list[bytes | BinaryCacheError | None]:
        """Return small files in the order asked, None for those that are not there, errors for those that fail."""
        if not self.filesystem.async_impl or fsspec.core.has_magic(self.root):
            return [outcome(self, name) for name in names]
        paths = [f"{self.root}/{name}" for name in names]
        try:
            found = self.filesystem.cat(paths, on_error="return", batch_size=self.connections) if paths else {}
        except Exception as error:
            raise _unreadable(redact(self.url), error) from error
        return [self._content(name, found[path]) for name, path in zip(names, paths, strict=True)]

    def stream(self, name: str) -> Iterator[bytes]:
        """Give a file in pieces; raises BinaryCacheError, also where there is none."""
        path = f"{self.root}/{name}"
        try:
            start, size = 0, int(self.filesystem.info(path)["size"])
            while start < size:
                piece = bytes(self.filesystem.cat_file(path, start=start, end=min(start + BLOCK, size)))
                if not piece:
                    raise BinaryCacheError(f"{self._where(name)} became shorter while it was read")  # noqa: TRY301
                start += len(piece)
                yield piece
        except (BinaryCacheError, GeneratorExit):
            raise
        except _NOT_THERE:
            raise not_there(self._where(name)) from None
        except Exception as error:
            raise _unreadable(self._where(name), error) from error

    def _content(self, name: str, data: object) -> bytes | BinaryCacheError | None:
        if isinstance(data, bytes) and len(data) <= MOST_SMALL:
            return data
        if isinstance(data, BaseException):
            if self._missing(name, data):
                return None
            return _unreadable(self._where(name), data)
        return BinaryCacheError(f"{self._where(name)} is no narinfo: it is too large")

    def _missing(self, name: str, error: BaseException) -> bool:
        # S3 forbids what is not there to whoever may not list the bucket; the first file of all tells the difference
        forbidden = isinstance(error, PermissionError) and self.url.startswith("s3") and name != INFO
        return forbidden or isinstance(error, _NOT_THERE)

    def _where(self, name: str) -> str:
        return f"{redact(self.url).rstrip('/')}/{name}"


def outcome(objects: Objects, name: str) -> bytes | BinaryCacheError | None:
    """Return a small file, None where there is none, or the error for it."""
    try:
        return objects.get(name, MOST_SMALL)
    except BinaryCacheError as error:
        return error


def checked_size(data: bytes, most: int, where: str) -> bytes:
    """Return *data*; raise where it has more than *most* bytes."""
    if len(data) > most:
        raise BinaryCacheError(f"{where} has more than {most >> 20} MiB", hint="is it a binary cache of Nix?")
    return data


def not_there(where: str) -> BinaryCacheError:
    """Return the error for a file that was promised and is not there."""
    return BinaryCacheError(
        f"there is no {where}", hint="the cache has lost it, or never had it: name another cache, or build the path"
    )


def _unreadable(where: str, error: BaseException) -> BinaryCacheError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else f"{error}"
    return BinaryCacheError(
        f"{where} cannot be read: {reason or type(error).__name__}", hint="check the address and the access rights"
    )

"""The file systems of fsspec behind one storage: made after a fork, and shared by threads where they may be."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.core import url_to_fs

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig
from nixery_core.storage._fsspec_errors import secrets_of

# made for many threads; what is asynchronous inside is too
_FOR_ALL_THREADS = {"file", "local", "memory"}
# what a connection survives
_HARMLESS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def file_system_type(url: str) -> type[AbstractFileSystem]:
    """Return which file system of fsspec a URL asks for."""
    found: type[AbstractFileSystem] = get_filesystem_class(_protocol(url))
    return found


class FileSystems:
    """Lends a file system for a call.

    Where a file system is for one thread at a time, such as a connection of SFTP, as many are made
    as threads are busy at once; they are used again, and closed with the storage.

    Args:
        url: The place of the storage.
        options: Keyword arguments of the file system.

    Raises:
        InvalidConfig: For options that the file system does not take.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = dict(options)
        protocol = _protocol(url)
        self.type = file_system_type(url)
        self._shared = self.type.async_impl or protocol in _FOR_ALL_THREADS
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._idle: list[AbstractFileSystem] = []
        self._inherited: list[AbstractFileSystem] = []
        self.secrets: list[str] = []
        """What the file system has found out for itself, such as from the environment, and no message may show."""
        weakref.finalize(self, _close_all, self._idle, self._owner)
        self.root = self._check()

    @contextlib.contextmanager
    def lent(self) -> Iterator[AbstractFileSystem]:
        """Lend a file system until the end of the block; one whose connection may be broken is not used again."""
        fs = self._take()
        try:
            yield fs
        except BaseException as error:
            if not self._shared and not isinstance(error, _HARMLESS):
                _close(fs)
                raise
            self._give_back(fs)
            raise
        self._give_back(fs)

    def _check(self) -> str:
        """Return the path of the storage; nothing is connected to."""
        if self._shared:
            fs, path = self._open()
            self._idle.append(fs)
            self.secrets += secrets_of(vars(fs))
            return path
        arguments = {**self.type._get_kwargs_from_urls(self._url), **self._options}
        try:
            inspect.signature(self.type.__init__).bind(None, **arguments)
        except TypeError as error:
            if "::" not in self._url:
                raise _bad_options(self._url, error) from error
        return str(self.type._strip_protocol(self._url.partition("::")[0])).rstrip("/")

    def _open(self) -> tuple[AbstractFileSystem, str]:
        # a cached listing says that a new object does not exist; file systems over connections do not
        # take the option, for they hand all they get to the connection
        ours = {"use_listings_cache": False} if self._shared else {"skip_instance_cache": True}
        try:
            fs, path = url_to_fs(self._url, **{**ours, **self._options})
        except TypeError as error:
            raise _bad_options(self._url, error) from error
        fs.dircache.use_listings_cache = False
        _send_at_once(fs)
        _finish_here_only(fs)
        return fs, str(path).rstrip("/")

    def _take(self) -> AbstractFileSystem:
        if self._owner != os.getpid():
            self._after_fork()
        with self._lock:
            if self._shared and self._idle:
                return self._idle[0]
            if self._idle:
                return self._idle.pop()
        fs, _ = self._open()
        if self._shared:
            with self._lock:
                self._idle.append(fs)
        return fs

    def _give_back(self, fs: AbstractFileSystem) -> None:
        if not self._shared:
            with self._lock:
                self._idle.append(fs)

    def _after_fork(self) -> None:
        # the connections are the parent's, and to close them here would end them there
        self._lock = threading.Lock()
        self._inherited += self._idle
        self._idle.clear()
        self._owner = os.getpid()


def _protocol(url: str) -> str:
    return url.partition("::")[0].partition("://")[0]


def _bad_options(url: str, error: TypeError) -> InvalidConfig:
    return InvalidConfig(f"{redact(url)} does not take these options: {error}")


def _send_at_once(fs: AbstractFileSystem) -> None:
    """Let SSH not wait for more before it sends a little: each small request would take 40 ms."""
    transport = getattr(getattr(fs, "client", None), "get_transport", lambda: None)()
    if transport is not None and hasattr(transport.sock, "setsockopt"):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _finish_here_only(fs: AbstractFileSystem) -> None:
    """Let a process that was forked not wait at its end, for ever, for a thread that only this one has.

    Some file systems, such as adlfs, let their thread close their connections at exit.
    """
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        alive = finalizer.peek()
        if alive is not None and alive[0] is fs and finalizer.atexit:
            finalizer.atexit = False
            atexit.register(_finish, finalizer, os.getpid())


def _finish(finalizer: Callable[[], object], owner: int) -> None:
    if os.getpid() == owner:
        finalizer()


def _close_all(idle: list[AbstractFileSystem], owner: int) -> None:
    if os.getpid() == owner:
        for fs in idle:
            _close(fs)


def _close(fs: AbstractFileSystem) -> None:
    # fsspec has no common way; this is what its file systems over connections have
    for holder in ("ftp", "client"):
        close: Callable[[], object] | None = getattr(getattr(fs, holder, None), "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()

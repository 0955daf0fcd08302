"""A TCP proxy that misbehaves on request: it resets connections, answers in the server's place, or is slow."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType

LOOPBACK = "127.0.0.1"
_PIECE = 1 << 16


class FaultyProxy:
    """Stands between a client and a server of this machine, on :attr:`port`, until the end of a ``with`` block.

    It passes everything on until it is told otherwise; each fault takes the place of the one before.

    Args:
        target: The port of the server.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        """Where clients connect to."""
        self.faults = 0
        """How many connections were treated badly so far."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._direction = ""
        self._left = 0
        self._times = 0
        self._reply: bytes | None = None
        self._delay = 0.0
        self._start(self._accept)

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
        with suppress(OSError):
            # wakes whoever accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def reset_after(self, sent: int, *, times: int) -> None:
        """Reset *times* connections: the first when *sent* more bytes went to the server, the others at once."""
        self._set(direction="up", left=sent, times=times)

    def cut_off_after(self, received: int, *, times: int) -> None:
        """Reset *times* connections: the first when *received* more bytes came from the server, the others at once."""
        self._set(direction="down", left=received, times=times)

    def reply(self, answer: bytes, *, times: int) -> None:
        """Answer the next *times* connections that send something with these bytes, and end them."""
        self._set(direction="up", times=times, reply=answer)

    def slow_down(self, delay: float) -> None:
        """Wait *delay* seconds before each 64 KiB in either direction."""
        self._set(delay=delay)

    def heal(self) -> None:
        """Pass everything on again."""
        self._set()

    def _set(
        self, *, direction: str = "", left: int = 0, times: int = 0, reply: bytes | None = None, delay: float = 0.0
    ) -> None:
        with self._lock:
            self._direction, self._left, self._times = direction, left, times
            self._reply, self._delay = reply, delay

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((LOOPBACK, self._target))
        except OSError:
            _reset(client)
            return
        with self._lock:
            if self._closing:
                client.close()
                server.close()
                return
            self._open |= {client, server}
        self._start(self._pass_back, client, server)
        try:
            self._pass_on(client, server)
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            piece = _receive(client)
            if not piece:
                return
            bad, reply = self._is_bad("up", len(piece))
            if bad and reply is None:
                _reset(client)
                _reset(server)
                return
            if bad and reply is not None:
                with suppress(OSError):
                    client.sendall(reply)
                    client.shutdown(socket.SHUT_WR)
                _reset(server)
                # what it still has to say would turn the answer into a reset
                while _receive(client):
                    pass
                client.close()
                return
            try:
                server.sendall(piece)
            except OSError:
                return

    def _pass_back(self, client: socket.socket, server: socket.socket) -> None:
        while piece := _receive(server):
            bad, _ = self._is_bad("down", len(piece))
            if bad:
                _reset(client)
                _reset(server)
                return
            try:
                client.sendall(piece)
            except OSError:
                _reset(server)
                return
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def _is_bad(self, direction: str, size: int) -> tuple[bool, bytes | None]:
        time.sleep(self._delay)
        with self._lock:
            if direction != self._direction or not self._times:
                return False, None
            self._left -= size
            if self._left > 0:
                return False, None
            self._times -= 1
            self.faults += 1
            return True, self._reply

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads.append(thread)
        thread.start()


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_PIECE)
    except OSError:
        return b""


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        # no farewell: the other side sees "connection reset by peer"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # another thread may be reading from it
        connection.shutdown(socket.SHUT_RD)
    connection.close()

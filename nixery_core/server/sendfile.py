"""Files to sockets inside the kernel, under uvicorn, which has no ASGI extension for it.

Wrap the outermost application in :class:`Sendfile`; under any other server, with TLS, or where
uvicorn has changed inside, it does nothing and blobs are sent piece by piece.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

from nixery_core.server.files import ZERO_COPY
from nixery_core.server.replies import Message, Receive, Scope, Send

_CHUNK = 4 << 20
"""Most bytes of one call; a socket takes less."""
_SLICE = 64 << 20
"""Bytes after which a thread is given back, so that many downloads share a few threads."""
_PATIENCE = 20
"""How long a thread waits for a client, milliseconds; then the event loop waits instead."""

_App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Sendfile:
    """Offers ``http.response.zerocopysend`` to *app* where the server is uvicorn with httptools.

    >>> from nixery_core.server.sendfile import Sendfile
    >>> app = Sendfile(registry_app(builder))  # doctest: +SKIP
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        cycle = getattr(send, "__self__", None)
        if scope["type"] != "http" or not _fits(cycle, scope):
            await self._app(scope, receive, send)
            return

        async def with_files(message: Message) -> None:
            if message["type"] == ZERO_COPY:
                await _send(cycle, message["file"], message["offset"], message["count"])
                # the server does its book-keeping as after any other body
                await send({"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)})
            else:
                await send(message)

        scope = {**scope, "extensions": {**(scope.get("extensions") or {}), ZERO_COPY: {}}}
        await self._app(scope, receive, with_files)


def _fits(cycle: Any, scope: Scope) -> bool:
    transport = getattr(cycle, "transport", None)
    return (
        hasattr(os, "sendfile")
        and type(cycle).__module__ == "uvicorn.protocols.http.httptools_impl"
        and isinstance(getattr(cycle, "expected_content_length", None), int)
        and hasattr(cycle, "disconnected")
        and transport is not None
        and transport.get_extra_info("socket") is not None
        and transport.get_extra_info("ssl_object") is None
        and scope["method"] == "GET"
    )


async def _send(cycle: Any, file: int, offset: int, count: int) -> None:
    transport = cycle.transport
    await _flushed(cycle)
    # the loop watches the socket of the transport already; a second number for it can be watched too
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    try:
        end = offset + count
        while offset < end and not cycle.disconnected:
            sent = await anyio.to_thread.run_sync(_some, descriptor, file, offset, end - offset)
            offset += sent
            if offset < end and not sent:
                await _writable(descriptor, cycle)
    except (BrokenPipeError, ConnectionResetError):
        transport.abort()
    finally:
        os.close(descriptor)
    cycle.expected_content_length -= count


def _some(descriptor: int, file: int, offset: int, count: int) -> int:
    """Send what the client takes without much waiting; return how many bytes that was."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    sent = 0
    while sent < min(count, _SLICE):
        try:
            moved = os.sendfile(descriptor, file, offset + sent, min(count - sent, _CHUNK))
        except BlockingIOError:
            if not poll.poll(_PATIENCE):
                return sent
            continue
        if not moved:
            raise BrokenPipeError("the file has become shorter")
        sent += moved
    return sent


async def _flushed(cycle: Any) -> None:
    """Wait until the headers have gone out: what is sent past the transport must not overtake them."""
    pause = 0.0
    while cycle.transport.get_write_buffer_size() and not cycle.disconnected:
        await asyncio.sleep(pause)
        pause = 0.001


async def _writable(descriptor: int, cycle: Any) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        while not cycle.disconnected:
            try:
                await asyncio.wait_for(ready.wait(), 1.0)
            except TimeoutError:
                continue
            return
    finally:
        loop.remove_writer(descriptor)

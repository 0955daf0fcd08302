"""The bytes of a blob on their way to a client: from a file, or from the storage in pieces.

A piece is read when the one before has gone out, so a slow client costs one piece of memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nixery_core.errors import StorageError
from nixery_core.server.ranges import Part
from nixery_core.server.replies import RawHeaders, Scope, Send
from nixery_core.server.threads import Threads
from nixery_core.storage.backend import Backend

PIECE = 1 << 20
"""Bytes that are read from a file at once."""
ZERO_COPY = "http.response.zerocopysend"
PATH_SEND = "http.response.pathsend"


async def send_file(
    scope: Scope, send: Send, threads: Threads, path: Path, part: Part, status: int, headers: RawHeaders
) -> bool:
    """Send a part of a file in the way that costs the server least; return False where there is no file.

    Source: ASGI, "Zero Copy Send" and "Path Send" extensions; where the server has neither, pieces.
    """
    extensions = scope.get("extensions") or {}
    try:
        fd = await threads.run(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"{path.name}: {os.strerror(error.errno or 0)}", key=path.name) from error
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if ZERO_COPY in extensions:
            await send({"type": ZERO_COPY, "file": fd, "offset": part.start, "count": part.length})
        elif PATH_SEND in extensions and part.length == part.size:
            await send({"type": PATH_SEND, "path": str(path)})
        else:
            await _send_pieces(send, threads, fd, part)
    finally:
        os.close(fd)
    return True


async def _send_pieces(send: Send, threads: Threads, fd: int, part: Part) -> None:
    position = part.start
    while position < part.end:
        piece = await threads.run(os.pread, fd, min(PIECE, part.end - position), position)
        if not piece:
            raise StorageError(f"the blob ends after {position} of {part.size} bytes")
        position += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": position < part.end})
    if part.length == 0:
        await send({"type": "http.response.body", "body": b""})


async def send_stream(
    send: Send, threads: Threads, backend: Backend, key: str, part: Part, status: int, headers: RawHeaders
) -> None:
    """Send a part of an object of the storage; raises ObjectNotFound before anything is sent."""
    pieces = await threads.run(backend.stream, key, part.start, part.end)
    try:
        first = await threads.run(next, pieces, b"")
        await send({"type": "http.response.start", "status": status, "headers": headers})
        missing, piece = part.length, first
        while piece and missing:
            missing -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": missing > 0})
            piece = await threads.run(next, pieces, b"") if missing else b""
        if missing:
            raise StorageError(f"{key} ends {missing} bytes too early", key=key)
        if part.length == 0:
            await send({"type": "http.response.body", "body": b""})
    finally:
        await threads.run(_close, pieces)


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()

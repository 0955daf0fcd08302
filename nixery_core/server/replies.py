"""What goes out: the few messages of ASGI that a registry needs.

A manifest is answered some thousand times a second, so its messages are made once, and no
framework stands between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from nixery_core.server.refusals import Refusal

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

JSON = "application/json"


def raw_headers(headers: Iterable[tuple[str, str]]) -> RawHeaders:
    """Return headers as ASGI wants them: lower-case names, bytes."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first value of a request header, or None."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def header_lines(scope: Scope, name: bytes) -> tuple[bytes, ...]:
    """Return every line of a request header, in order."""
    return tuple(value for key, value in scope["headers"] if key == name)


async def reply(send: Send, status: int, headers: RawHeaders, body: bytes = b"", *, head: bool = False) -> None:
    """Send a whole response; for HEAD without its body."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def refuse(send: Send, refusal: Refusal, *, head: bool = False) -> None:
    """Send a failure with its JSON body."""
    body = refusal.body()
    headers = raw_headers([("content-type", JSON), ("content-length", str(len(body))), *refusal.headers])
    await reply(send, refusal.status, headers, body, head=head)

"""A client that calls an ASGI application directly: no server, no socket, no other library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any, TypeAlias

import attrs

_Message: TypeAlias = MutableMapping[str, Any]
_Application: TypeAlias = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]


@attrs.frozen
class AsgiResponse:
    """What came back."""

    status: int
    header_lines: tuple[tuple[str, str], ...]
    """Lower-case names with values, in order."""
    body: bytes
    pieces: int
    """In how many messages the body came."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers by their lower-case names; the last line of each."""
        return dict(self.header_lines)

    def json(self) -> Any:
        """Return the body as JSON values; raises ValueError."""
        return json.loads(self.body)


class AsgiClient:
    """Sends requests to an application in an event loop of its own; use it in a ``with`` statement.

    >>> async def application(scope, receive, send):
    ...     await send({"type": "http.response.start", "status": 200, "headers": []})
    ...     await send({"type": "http.response.body", "body": scope["path"].encode()})
    >>> with AsgiClient(application) as client:
    ...     client.get("/v2/").body
    b'/v2/'
    """

    def __init__(self, application: _Application, *, root_path: str = "", extensions: Iterable[str] = ()) -> None:
        self._application = application
        self._root_path = root_path
        self._extensions = tuple(extensions)
        self._runner = asyncio.Runner()

    def __enter__(self) -> AsgiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._runner.close()

    def run(self, work: Awaitable[Any]) -> Any:
        """Return what a coroutine gives that calls :meth:`request` itself, perhaps many times at once."""

        async def wrapped() -> Any:
            return await work

        return self._runner.run(wrapped())

    def get(self, target: str, *headers: tuple[str, str], method: str = "GET") -> AsgiResponse:
        """Send one request and return the response; *target* is a path, perhaps with a query."""
        response: AsgiResponse = self.run(self.request(target, *headers, method=method))
        return response

    def head(self, target: str, *headers: tuple[str, str]) -> AsgiResponse:
        """Send a HEAD request."""
        return self.get(target, *headers, method="HEAD")

    async def request(
        self,
        target: str,
        *headers: tuple[str, str],
        method: str = "GET",
        leave: asyncio.Event | None = None,
        on_message: Callable[[_Message], Awaitable[None]] | None = None,
    ) -> AsgiResponse:
        """Send one request within the loop.

        Args:
            target: A path as the application sees it, decoded; a query behind ``?``.
            headers: Names and values, in order.
            method: Of the request.
            leave: When it is set, the client closes its connection.
            on_message: Awaited with every message of the response; what it waits for is backpressure.
        """
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "root_path": self._root_path,
            "query_string": query.encode("utf-8", "surrogateescape"),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "extensions": {name: {} for name in self._extensions},
        }
        messages: list[_Message] = []
        asked = False

        async def receive() -> _Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: _Message) -> None:
            messages.append(message)
            if on_message is not None:
                await on_message(message)

        await self._application(scope, receive, send)
        return _response(messages)


def _response(messages: list[_Message]) -> AsgiResponse:
    if not messages:
        return AsgiResponse(0, (), b"", 0)
    start, *rest = messages
    assert start["type"] == "http.response.start"
    bodies = [message.get("body", b"") for message in rest if message["type"] == "http.response.body"]
    assert not rest or not rest[-1].get("more_body", False), "the response has no end"
    lines = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in start.get("headers", ()))
    return AsgiResponse(start["status"], lines, b"".join(bodies), len(bodies))

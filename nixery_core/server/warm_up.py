"""Images that are built before somebody asks for them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable

from nixery_core.errors import InvalidTag
from nixery_core.model.names import check_name, check_tag
from nixery_core.server.replies import Message, Receive, Scope, Send

_log = logging.getLogger(__name__)
INTERNAL = "nixery_core.internal"
"""In the scope of a request that no client sent: nobody was served."""
_DEFAULT_PAUSE = 5.0


def warm_up_list(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read names, each perhaps with a tag; raises InvalidName and InvalidTag.

    >>> warm_up_list(["shell/git", "htop:nixos-24.05"])
    (('shell/git', 'latest'), ('htop', 'nixos-24.05'))
    """
    pairs = []
    for text in texts:
        name, colon, tag = text.partition(":")
        if colon and not tag:
            raise InvalidTag(f"{text!r} has an empty tag", hint="write NAME or NAME:TAG")
        pairs.append((check_name(name), check_tag(tag or "latest")))
    return tuple(pairs)


class WarmUp:
    """Asks an application for images, one after the other, as a client would.

    So they are looked up, built in their turn and remembered exactly as for the first client.

    Args:
        application: The registry.
        images: Names and tags.
    """

    def __init__(
        self, application: Callable[[Scope, Receive, Send], Awaitable[None]], images: Iterable[tuple[str, str]]
    ) -> None:
        self._application = application
        self._images = tuple(images)

    async def run(self) -> None:
        """Ask until every image is there or has failed; failures are logged."""
        for name, tag in self._images:
            status, body = await self._image(name, tag)
            if status == 200:
                _log.info("warm-up: %s:%s is there", name, tag, extra={"image": f"{name}:{tag}"})
            else:
                _log.warning("warm-up: %s:%s failed: %s", name, tag, _message(body), extra={"image": f"{name}:{tag}"})

    async def _image(self, name: str, tag: str) -> tuple[int, bytes]:
        while True:
            status, headers, body = await _ask(self._application, f"/v2/{name}/manifests/{tag}")
            if status != 429:
                return status, body
            # it is being built, or waits for its turn
            await asyncio.sleep(_seconds(headers.get(b"retry-after")))


async def _ask(
    application: Callable[[Scope, Receive, Send], Awaitable[None]], path: str
) -> tuple[int, dict[bytes, bytes], bytes]:
    status, headers, pieces = 0, dict[bytes, bytes](), list[bytes]()

    async def receive() -> Message:
        # this client never leaves by itself
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], dict(message["headers"])
        else:
            pieces.append(message.get("body", b""))

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": None,
        INTERNAL: True,
        "server": None,
    }
    await application(scope, receive, send)
    return status, headers, b"".join(pieces)


def _seconds(text: bytes | None) -> float:
    return float(text) if text is not None and text.isdigit() else _DEFAULT_PAUSE


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["errors"][0]["message"])
    except (ValueError, LookupError, TypeError):
        return "the registry does not say why"

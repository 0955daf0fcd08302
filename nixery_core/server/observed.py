"""Around an application: each request has an identity, is counted, and can be read in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nixery_core.server.files import ZERO_COPY
from nixery_core.server.metrics import Metrics
from nixery_core.server.replies import Message, Receive, Scope, Send
from nixery_core.server.request_id import HEADER, enter_request, request_id

_log = logging.getLogger("nixery_core.access")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KINDS = {"manifests": "manifest", "blobs": "blob", "referrers": "referrers"}
_ROUTES = {"/": "page", "/v2/": "base", "/v2": "base", "/healthz": "health", "/readyz": "health", "/metrics": "metrics"}
_HEADER = HEADER.encode()
CLIENT_GONE = 499
"""What a request is counted as whose client has left before it was answered; nginx counts so."""


def route_of(path: str) -> str:
    """Return the word for the kind of a path: few words, whatever clients ask for.

    >>> [route_of(path) for path in ("/v2/shell/git/manifests/latest", "/v2/git/tags/list", "/ui/builds", "/x")]
    ['manifest', 'tags', 'page', 'other']
    """
    known = _ROUTES.get(path)
    if known is not None:
        return known
    if path.startswith("/v2/"):
        _, _, tail = path[4:].rpartition("/")
        kind = path[4 : len(path) - len(tail) - 1].rpartition("/")[2]
        return "tags" if kind == "tags" and tail == "list" else _KINDS.get(kind, "other")
    return "page" if path.startswith("/ui/") else "other"


class Observed:
    """An application whose requests have identities, are counted, and are logged by ``nixery_core.access``.

    Args:
        application: What answers.
        metrics: Where requests are counted; None counts nothing.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        application: Callable[[Scope, Receive, Send], object],
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._application = application
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)  # type: ignore[misc]
            return
        begun = self._clock()
        identity = request_id(scope)
        enter_request(identity)
        id_line = (_HEADER, identity.encode())
        status, sent = CLIENT_GONE, 0

        async def watched(message: Message) -> None:
            nonlocal status, sent
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
                # the messages of manifests are made once and sent often: theirs stay as they are
                message = {**message, "headers": [*message.get("headers", ()), id_line]}
            await send(message)
            if kind == "http.response.body":
                sent += len(message.get("body", b""))
            elif kind == ZERO_COPY:
                sent += message["count"]

        if self._metrics is not None:
            self._metrics.request_begins()
        try:
            await self._application(scope, receive, watched)  # type: ignore[misc]
        except BaseException:
            status = 500 if status == CLIENT_GONE else status
            raise
        finally:
            seconds = self._clock() - begun
            self._tell(scope, status, sent, seconds)

    def _tell(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        if self._metrics is not None:
            self._metrics.request_ends()
            self._metrics.request(route_of(scope["path"]), method, status, seconds=seconds, sent=sent)
        if _log.isEnabledFor(logging.INFO):
            client = scope.get("client")
            _log.info(
                "%s %s %d",
                method,
                scope["path"],
                status,
                extra={
                    "method": method,
                    "path": scope["path"],
                    "status": status,
                    "bytes": sent,
                    "seconds": round(seconds, 6),
                    "client": client[0] if client else "",
                },
            )

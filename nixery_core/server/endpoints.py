"""Routes beside those of the registry API: they take few methods, and fail in its words."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.routing import Route

from nixery_core.server.health import Health
from nixery_core.server.metrics import Metrics
from nixery_core.server.refusals import Refusal, internal_error, method_not_allowed
from nixery_core.server.replies import Receive, Scope, Send, header, raw_headers, refuse, reply
from nixery_core.server.request_id import request_id

_log = logging.getLogger(__name__)

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Answers one request; raises Refusal."""


class Endpoint:
    """An ASGI application for one route: it checks the method, and turns failures into answers."""

    def __init__(self, answer: Answer, *methods: str) -> None:
        self._answer = answer
        self._methods = frozenset(methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        head = scope["method"] == "HEAD"
        try:
            await self._checked(scope)(scope, receive, send)
        except Refusal as refusal:
            await refuse(send, refusal, head=head)
        except Exception:  # noqa: BLE001 (the last place to catch one; it is logged, and not shown)
            identity = request_id(scope)
            _log.exception("request %s: %s %s failed", identity, scope["method"], scope["path"])
            await refuse(send, internal_error(identity), head=head)

    def _checked(self, scope: Scope) -> Answer:
        if scope["method"] not in self._methods:
            raise method_not_allowed(scope["method"], ", ".join(sorted(self._methods)))
        return self._answer


def route(path: str, answer: Answer, *methods: str) -> Route:
    """Return the route of one path; by default for GET and HEAD."""
    return Route(path, Endpoint(answer, *(methods or ("GET", "HEAD"))))


def operation_routes(health: Health, metrics: Metrics | None = None) -> list[Route]:
    """Return ``/healthz`` and ``/readyz``, and ``/metrics`` where there are some."""
    routes = [route("/healthz", health.alive), route("/readyz", health.ready)]
    if metrics is not None:
        routes.append(route("/metrics", _scrape(metrics)))
    return routes


def _scrape(metrics: Metrics) -> Answer:
    async def scrape(scope: Scope, _: Receive, send: Send) -> None:
        content_type, body = metrics.text(header(scope, b"accept") or "")
        headers = [("content-type", content_type), ("content-length", str(len(body))), ("cache-control", "no-store")]
        await reply(send, 200, raw_headers(headers), body, head=scope["method"] == "HEAD")

    return scrape

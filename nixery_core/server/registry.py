"""The registry API as an ASGI application: the pull side of the OCI distribution specification.

Whatever happens, the answer is one of the specification's, and nothing of another library's words
gets out.
"""

from __future__ import annotations

import functools
import logging

from nixery_core.errors import ClientGone, NixeryError
from nixery_core.server.access import Authorise, check_access
from nixery_core.server.listing import Listing
from nixery_core.server.pull import Pull
from nixery_core.server.refusals import Refusal, internal_error, method_not_allowed, refusal_of, upload_unknown
from nixery_core.server.replies import JSON, Message, Receive, Scope, Send, raw_headers, refuse, reply
from nixery_core.server.request_id import request_id
from nixery_core.server.targets import Endpoint, parse_target

_log = logging.getLogger(__name__)
_ALLOWED = "GET, HEAD"
_BASE = raw_headers(
    [("content-type", JSON), ("content-length", "2"), ("docker-distribution-api-version", "registry/2.0")]
)
# the same few paths come again and again; a path that means nothing is not kept
_target = functools.lru_cache(4096)(parse_target)


class Registry:
    """Answers everything below ``/v2/``, and everything else with 404.

    Args:
        pull: Manifests and blobs.
        listing: Tags and referrers.
        authorise: Who may do what; None lets everyone pull.
    """

    def __init__(self, pull: Pull, listing: Listing, authorise: Authorise | None = None) -> None:
        self._pull = pull
        self._listing = listing
        self._authorise = authorise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except ClientGone:
            return
        except Refusal as refusal:
            failure = refusal
        except NixeryError as error:
            failure = self._told(scope, error)
        except Exception:  # noqa: BLE001 (the last place to catch one; it is logged, and not shown)
            request = request_id(scope)
            _log.exception("request %s: %s %r failed", request, scope["method"], scope["path"])
            failure = internal_error(request)
        else:
            return
        if started:
            # half an answer is out already: only the server can break it off
            raise failure
        await refuse(send, failure, head=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = _target(_route_path(scope))
        if scope["method"] not in ("GET", "HEAD"):
            raise method_not_allowed(scope["method"], "" if target.endpoint is Endpoint.UPLOAD else _ALLOWED)
        allowed = await check_access(self._authorise, scope, target)
        match target.endpoint:
            case Endpoint.MANIFEST:
                await self._pull.manifest(scope, receive, send, target, allowed)
            case Endpoint.BLOB:
                await self._pull.blob(scope, send, target, allowed)
            case Endpoint.TAGS:
                await self._listing.tags(scope, send, target)
            case Endpoint.REFERRERS:
                await self._listing.referrers(scope, send, target, allowed)
            case Endpoint.BASE:
                await reply(send, 200, _BASE, b"{}", head=scope["method"] == "HEAD")
            case Endpoint.UPLOAD:
                raise upload_unknown()

    def _told(self, scope: Scope, error: NixeryError) -> Refusal:
        refusal = refusal_of(error)
        if refusal.status >= 500:
            _log.error("%s %r failed: %s", scope["method"], scope["path"], error.diagnostics())
        return refusal


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    # ASGI: the path holds what the application is mounted under
    root: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path

"""Answers to requests for tags and referrers.  Source: distribution-spec, "Content Discovery"."""

from __future__ import annotations

import urllib.parse
from bisect import bisect_right

from nixery_core.model.oci import INDEX, canonical_json
from nixery_core.server.access import Allowed
from nixery_core.server.binding import Binding
from nixery_core.server.discovery import referrers_of, tags_of
from nixery_core.server.refusals import invalid_query, name_unknown
from nixery_core.server.replies import JSON, Scope, Send, raw_headers, reply
from nixery_core.server.targets import Target
from nixery_core.server.threads import Threads
from nixery_core.storage.backend import Backend

MOST_TAGS = 1000
"""Most tags in one answer; a Link leads to the others."""
_MOST_DIGITS = 9


class Listing:
    """The two endpoints that tell what is there."""

    def __init__(self, backend: Backend, threads: Threads, binding: Binding) -> None:
        self._backend = backend
        self._threads = threads
        self._binding = binding

    async def tags(self, scope: Scope, send: Send, target: Target) -> None:
        """Answer with the tags that were built of a name, page by page."""
        query = _query(scope)
        number = _number(query.get("n"))
        tags = await self._threads.run(tags_of, self._backend, target.name)
        if not tags:
            raise name_unknown(target.name)
        first = bisect_right(tags, query["last"]) if "last" in query else 0
        page = tags[first : first + number]
        headers = [("content-type", JSON)]
        if page and first + len(page) < len(tags):
            headers.append(("link", _link(scope, target.name, number, page[-1])))
        body = canonical_json({"name": target.name, "tags": page})
        headers.append(("content-length", str(len(body))))
        await reply(send, 200, raw_headers(headers), body, head=scope["method"] == "HEAD")

    async def referrers(self, scope: Scope, send: Send, target: Target, allowed: Allowed) -> None:
        """Answer with an index of what refers to a manifest; an empty one where nothing does."""
        assert target.digest is not None
        artifact_type = _query(scope).get("artifactType")
        if allowed.bind and not await self._binding.holds(target.name, str(target.digest)):
            raise name_unknown(target.name)
        body = await self._threads.run(referrers_of, self._backend, target.name, target.digest, artifact_type)
        headers = [("content-type", INDEX), ("content-length", str(len(body)))]
        if artifact_type is not None:
            headers.append(("oci-filters-applied", "artifactType"))
        await reply(send, 200, raw_headers(headers), body, head=scope["method"] == "HEAD")


def _query(scope: Scope) -> dict[str, str]:
    text = scope.get("query_string", b"").decode("latin-1")
    try:
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise invalid_query("the query has too many parameters") from None
    return dict(reversed(pairs))


def _number(text: str | None) -> int:
    if text is None:
        return MOST_TAGS
    if not (text.isascii() and text.isdigit()):
        raise invalid_query(f"n is a number of tags, not {text[:40]!r}")
    return MOST_TAGS if len(text) > _MOST_DIGITS else min(int(text), MOST_TAGS)


def _link(scope: Scope, name: str, number: int, last: str) -> str:
    query = urllib.parse.urlencode({"n": number, "last": last})
    return f'<{scope.get("root_path", "")}/v2/{name}/tags/list?{query}>; rel="next"'

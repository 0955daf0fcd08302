"""Which part of a blob is asked for, and whether it is asked for at all.

Source: RFC 9110, sections 13.1.2 (If-None-Match), 13.1.5 (If-Range) and 14 (Range).
"""

from __future__ import annotations

import re

import attrs

from nixery_core.server.refusals import range_not_satisfiable

# no blob has 10**19 bytes; more digits would only cost time
_RANGE = re.compile(r"bytes=\s*(?P<first>\d{0,19})-(?P<last>\d{0,19})\s*", re.ASCII | re.IGNORECASE)


@attrs.frozen
class Part:
    """Some bytes of a blob, one after the other."""

    start: int
    end: int
    """Of the first byte behind the part."""
    size: int
    """Of the whole blob, bytes."""

    @property
    def length(self) -> int:
        """Bytes of the part."""
        return self.end - self.start

    def content_range(self) -> str:
        """Return the value of ``Content-Range``."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def wanted_part(range_header: str | None, if_range: str | None, etag: str, size: int) -> Part | None:
    """Return the part that is asked for, or None for the whole blob; raises Refusal with 416.

    Several ranges at once, other units and what is malformed count as no range at all, as section
    14.2 allows: the client gets the whole blob.

    >>> wanted_part("bytes=-2", None, '"e"', 10)
    Part(start=8, end=10, size=10)
    >>> wanted_part("bytes=0-4", '"other"', '"e"', 10) is None
    True
    """
    if range_header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        start, end = max(size - int(match["last"]), 0), size
    else:
        start = int(match["first"])
        end = min(int(match["last"]) + 1, size) if match["last"] else size
        if match["last"] and int(match["last"]) < start:
            return None
    if start >= size:
        raise range_not_satisfiable(size)
    return Part(start, end, size)


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client says that it has what *etag* names.

    >>> is_unchanged('W/"a", "b"', '"b"')
    True
    """
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]

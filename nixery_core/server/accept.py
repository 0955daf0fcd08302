"""Which of several media types a client takes.  Source: RFC 9110, sections 12.4.2 and 12.5.1."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import attrs


@attrs.frozen
class _MediaRange:
    type: str
    subtype: str
    quality: float

    def specificity(self, media_type: str) -> int:
        """Return how exactly this names *media_type*: 3, 2 or 1, and 0 for not at all."""
        kind, _, subtype = media_type.partition("/")
        if self.type == "*":
            return 1
        if self.type != kind:
            return 0
        if self.subtype == "*":
            return 2
        # whoever takes JSON takes what is written in it
        return 3 if self.subtype == subtype or (self.subtype == "json" and subtype.endswith("+json")) else 0


@functools.lru_cache(256)
def choose(accept: tuple[bytes, ...], offered: Sequence[str]) -> str | None:
    """Return the first of *offered* that the client takes, or None.

    Our order decides and not the client's, so that one image has one digest for all who can read it.

    Args:
        accept: Every ``Accept`` line; docker, podman and skopeo send one for each type.
        offered: Media types, best first.

    >>> choose((b"text/html", b"application/json;q=0.5, */*;q=0"), ("image/png", "application/json"))
    'application/json'
    """
    ranges = [parsed for line in accept for part in line.split(b",") if (parsed := _parse(part))]
    if not ranges:
        return offered[0]
    return next((media_type for media_type in offered if _quality(media_type, ranges) > 0), None)


def _quality(media_type: str, ranges: Sequence[_MediaRange]) -> float:
    best, quality = 0, 0.0
    for media_range in ranges:
        specificity = media_range.specificity(media_type)
        if specificity > best:
            best, quality = specificity, media_range.quality
        elif specificity and specificity == best:
            quality = max(quality, media_range.quality)
    return quality


def _parse(part: bytes) -> _MediaRange | None:
    name, *parameters = part.decode("latin-1").lower().split(";")
    kind, slash, subtype = name.strip().partition("/")
    if not slash:
        return None
    quality = 1.0
    for parameter in parameters:
        label, _, value = parameter.partition("=")
        if label.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                # a client that cannot count still wants something
                quality = 1.0
    return _MediaRange(kind, subtype, quality)

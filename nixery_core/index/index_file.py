"""A JSON index at any URL, as a package index."""

from __future__ import annotations

import attrs

from nixery_core._documents import read_document
from nixery_core._redact import redact
from nixery_core._remembered import Remembered, ttl_seconds
from nixery_core.errors import (
    InvalidConfig,
    InvalidDocument,
    InvalidTag,
    ObjectNotFound,
    RevisionNotFound,
    SourceError,
    StorageError,
)
from nixery_core.index.document import IndexDocument
from nixery_core.model.names import check_tag
from nixery_core.sources import DEFAULT_TAG

_TAG = "{tag}"


@attrs.frozen
class IndexFile:
    """The JSON index that ``nixery-core index`` writes, at a path, a web address or any URL that fsspec knows.

    The revision is the hash of the document, so its images are cached as long as it does not change.
    Where the URL has ``{tag}`` in it, it is the tag of the image: a folder of indexes.

    >>> IndexFile("https://example.org/{tag}.json.xz").kind
    'index'
    """

    url: str = attrs.field(repr=redact)
    """Plain JSON, or packed with gzip, xz, Zstandard or (``.br``) Brotli."""
    ttl: float = attrs.field(default=600.0, kw_only=True, converter=ttl_seconds)
    """How long a document that was read is believed, seconds."""
    _remembered: Remembered = attrs.field(factory=lambda: Remembered(4), init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.url or "\0" in self.url:
            raise InvalidConfig(f"{self.url!r} is not the URL of an index", hint="make one with: nixery-core index")

    @property
    def kind(self) -> str:
        """Which kind of index."""
        return "index"

    def snapshot(self, tag: str) -> IndexDocument:
        """Read the document; raises InvalidTag, RevisionNotFound or SourceError."""
        check_tag(tag)
        if _TAG not in self.url and tag != DEFAULT_TAG:
            raise InvalidTag(
                f"the index {redact(self.url)} has no tag {tag!r}",
                hint=f"use the tag {DEFAULT_TAG}, or write {_TAG} into the URL of the index",
            )
        url = self.url.replace(_TAG, tag)
        return self._remembered.get(url, self.ttl, lambda: _read(url))


def _read(url: str) -> IndexDocument:
    try:
        return IndexDocument.parse(read_document(url), where=redact(url))
    except ObjectNotFound as error:
        raise RevisionNotFound(f"there is no package index: {error.message}", hint=error.hint) from None
    except (InvalidDocument, StorageError) as error:
        raise SourceError(error.message, hint=error.hint) from error

"""Popularity data as a file: JSON at any URL."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nixery_core._documents import read_document
from nixery_core._redact import redact
from nixery_core.errors import InvalidDocument
from nixery_core.layering.popularity import Popularity

FORMAT_VERSION = 1
_HINT = 'write {"name": count, ...}, or make the file with: nixery-core popcount'


def load_popularity(url: str) -> Popularity:
    """Return the popularity data at *url*.

    The data is one JSON object, packed with gzip, xz or Zstandard or not packed at all: either counts
    by package name, ``{"glibc": 70000}``, or what :func:`popularity_bytes` writes.

    Args:
        url: A path, an ``http(s)://`` address, or any URL that fsspec knows.

    Raises:
        ObjectNotFound: There is nothing at *url*.
        StorageError: It cannot be read.
        InvalidDocument: It holds something else.
    """
    return parse_popularity(read_document(url), where=redact(url))


def parse_popularity(data: bytes, *, where: str = "the popularity data") -> Popularity:
    """Return the popularity data in a JSON document; raises InvalidDocument, which names *where*.

    >>> parse_popularity(b'{"format_version": 1, "counts": {"glibc": 7}}') == parse_popularity(b'{"glibc": 7}')
    True
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"{where} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(document, dict):
        raise InvalidDocument(f"{where} is a JSON object, not {type(document).__name__}", hint=_HINT)
    # a package may be called "counts", but then it has a number
    if isinstance(document.get("counts"), dict):
        version = document.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise InvalidDocument(
                f"{where} has the format version {version!r}, not {FORMAT_VERSION}",
                hint="make it with this version of: nixery-core popcount",
            )
        document = document["counts"]
    try:
        return Popularity(document)
    except InvalidDocument as error:
        raise InvalidDocument(f"{where}: {error.message}", hint=_HINT) from None


def popularity_bytes(popularity: Popularity, metadata: Mapping[str, str | int] | None = None) -> bytes:
    """Return the JSON document that :func:`load_popularity` reads: sorted, one package a line.

    >>> parse_popularity(popularity_bytes(Popularity({"glibc": 7}), {"roots": 9})).counts
    {'glibc': 7}
    """
    document = {"format_version": FORMAT_VERSION, "metadata": dict(metadata or {}), "counts": dict(popularity.counts)}
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"

"""Popularity data as a file: JSON at any URL, in our own form or in Nixery's."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nixery_core._documents import read_document
from nixery_core._redact import redact
from nixery_core.errors import InvalidDocument
from nixery_core.layering.popularity import Popularity
from nixery_core.model.storepath import name_without_version, package_name

FORMAT_VERSION = 1
_HINT = 'write {"name": count, ...}, or make the file with: nixery-core popcount'


def load_popularity(url: str) -> Popularity:
    """Return the popularity data at *url*.

    The data is one JSON object, packed with gzip, xz or Zstandard or not packed at all: what
    :func:`popularity_bytes` writes, or counts by package name, ``{"glibc": 70000}``.  The files that
    Nixery's popcount makes are of the second kind, with versions: see :func:`without_versions`.

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
    ours = isinstance(document.get("counts"), dict)
    if ours:
        version = document.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise InvalidDocument(
                f"{where} has the format version {version!r}, not {FORMAT_VERSION}",
                hint="make it with this version of: nixery-core popcount",
            )
        document = document["counts"]
    try:
        popularity = Popularity(document)
    except InvalidDocument as error:
        raise InvalidDocument(f"{where}: {error.message}", hint=_HINT) from None
    if not ours and _has_versions(popularity.counts):
        return Popularity(without_versions(popularity.counts))
    return popularity


def without_versions(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by package name for counts by store path name, as Nixery's popcount makes them.

    Several versions or outputs of a package become one entry with the largest of their counts: a sum
    would count a package twice that uses two of them.

    >>> without_versions({"glibc-2.38-44": 900, "glibc-2.38-44-bin": 20, "libxml2-2.12.7": 8})
    {'glibc': 900, 'libxml2': 8}
    """
    merged: dict[str, int] = {}
    for name, count in counts.items():
        package = name_without_version(name)
        merged[package] = max(count, merged.get(package, 0))
    return merged


def _has_versions(counts: Mapping[str, int]) -> bool:
    """Return whether most names have a version: a few packages have names that look so."""
    return sum(package_name(name) != name for name in counts) * 2 > len(counts)


def popularity_bytes(popularity: Popularity, metadata: Mapping[str, str | int] | None = None) -> bytes:
    """Return the JSON document that :func:`load_popularity` reads: sorted, one package a line.

    >>> parse_popularity(popularity_bytes(Popularity({"glibc": 7}), {"roots": 9})).counts
    {'glibc': 7}
    """
    document = {"format_version": FORMAT_VERSION, "metadata": dict(metadata or {}), "counts": dict(popularity.counts)}
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"

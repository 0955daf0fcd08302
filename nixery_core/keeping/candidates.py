"""What nothing needed when garbage was last looked for, and since when that is so."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nixery_core.errors import ObjectNotFound
from nixery_core.model.oci import canonical_json
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import CANDIDATES_KEY

FORMAT_VERSION = 1


def read_candidates(backend: Backend) -> dict[str, float]:
    """Return the keys of candidates and since when they are, seconds of the storage's clock.

    What cannot be read is as good as none: all garbage is new then, and stays for one more grace.

    >>> from nixery_core.storage.plugins import open_backend
    >>> backend = open_backend("memory://candidates")
    >>> write_candidates(backend, {"blobs/sha256/00": 12.5})
    >>> read_candidates(backend)
    {'blobs/sha256/00': 12.5}
    """
    try:
        document = json.loads(backend.get(CANDIDATES_KEY))
        if document["format_version"] != FORMAT_VERSION:
            return {}
        return {str(key): float(since) for key, since in document["since"].items()}
    except (ObjectNotFound, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_candidates(backend: Backend, since: Mapping[str, float]) -> None:
    """Keep *since* in the place of what was there; nothing, if there are none."""
    if not since:
        backend.delete(CANDIDATES_KEY)
        return
    document = canonical_json({"format_version": FORMAT_VERSION, "since": dict(since)})
    backend.replace(CANDIDATES_KEY, document, content_type="application/json")

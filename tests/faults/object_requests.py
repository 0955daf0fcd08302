"""The requests of a process to an object store, and how far its large blobs have come.

A request is told as ``+copy KEY`` before it is sent, and as ``-copy KEY`` when it was answered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.keys import STAGING
from nixery_core.storage.object_store_backend import ObjectStoreBackend

REQUESTS = (
    "put",
    "get",
    "get_range",
    "stat",
    "delete",
    "copy",
    "start_upload",
    "upload_part",
    "complete_upload",
    "abort_upload",
)
"""Of an :class:`~nixery_core.storage.object_store.ObjectStore`; listings change nothing."""
PARTS, COMPLETING, COMPLETED, COPYING, COPIED, REMOVING, STORED = (
    "parts are sent",
    "the upload is completed",
    "between completion and copy",
    "the staged object is copied",
    "between copy and removal",
    "the staged object is removed",
    "the blob is there, and nothing tells of it",
)
PUBLISHING = (COMPLETING, COMPLETED, COPYING, COPIED, REMOVING, STORED)
_STEPS = {
    "+start_upload": PARTS,
    "+complete_upload": COMPLETING,
    "-complete_upload": COMPLETED,
    "+copy": COPYING,
    "-copy": COPIED,
    "+delete": REMOVING,
}


def watch_requests(backend: Backend, told: Callable[[str], object]) -> None:
    """Call *told* around each request of this process to stores of the kind that *backend* has; for good."""
    assert isinstance(backend, ObjectStoreBackend)
    kind = type(backend._store)
    for name in REQUESTS:
        setattr(kind, name, _watched(name, getattr(kind, name), told))


def _watched(name: str, method: Callable[..., Any], told: Callable[[str], object]) -> Callable[..., Any]:
    @functools.wraps(method)
    def request(store: object, target: str | UnfinishedUpload, *arguments: Any, **options: Any) -> Any:
        key = target.key if isinstance(target, UnfinishedUpload) else target
        told(f"+{name} {key}")
        try:
            return method(store, target, *arguments, **options)
        finally:
            told(f"-{name} {key}")

    return request


def large_blobs(lines: Iterable[str]) -> dict[str, list[str]]:
    """Return the steps of each upload in parts until it is a blob, by the key of the upload; parts are left out.

    >>> lines = ["+put k", "+start_upload staging/a", "-upload_part staging/a", "+copy staging/a", "-copy staging/a"]
    >>> large_blobs(lines)
    {'staging/a': ['+start_upload', '+copy', '-copy']}
    """
    found: dict[str, list[str]] = {}
    for line in lines:
        step, _, key = line.partition(" ")
        if step == "+start_upload":
            found[key] = [step]
        elif key in found and step[1:] not in ("upload_part", "start_upload") and not _is_over(key, found[key][-1]):
            found[key].append(step)
    return found


def phase(lines: Iterable[str]) -> str | None:
    """Return what a process was about with its large blob when it had told *lines*; None where with none.

    Of several blobs on their way it is the one that had come furthest.

    >>> phase(["+start_upload staging/a", "+complete_upload staging/a", "-complete_upload staging/a"])
    'between completion and copy'
    >>> phase(["+start_upload blobs/a", "+complete_upload blobs/a", "-complete_upload blobs/a", "event LayerBuilt"])
    'the blob is there, and nothing tells of it'
    """
    lines = [line for line in lines if line[:1] in ("+", "-")]
    phases = [
        [_STEPS[step] for step in steps if step in _STEPS][-1]
        for key, steps in large_blobs(lines).items()
        if not _is_over(key, steps[-1])
    ]
    if not phases and lines and lines[-1].partition(" ")[0] in ("-delete", "-complete_upload"):
        key = lines[-1].partition(" ")[2]
        return STORED if key in large_blobs(lines) else None
    return max(phases, key=(PARTS, *PUBLISHING).index, default=None)


def unfinished(lines: Iterable[str]) -> set[str]:
    """Return the keys of the uploads that were begun for sure, and that nobody has asked to end.

    >>> unfinished(["+start_upload a", "-start_upload a", "+start_upload b"])
    {'a'}
    """
    begun: set[str] = set()
    for line in lines:
        step, _, key = line.partition(" ")
        if step == "-start_upload":
            begun.add(key)
        elif step in ("+complete_upload", "+abort_upload"):
            begun.discard(key)
    return begun


def _is_over(key: str, step: str) -> bool:
    # what is not staged is sent to its place
    return step == ("-delete" if key.startswith(STAGING) else "-complete_upload")

"""``index.json``: the names of a storage for tools that read OCI image layouts.

It is made from the refs, which are what counts.  In a directory it follows each change under a lock,
since tools read it in its place.  Elsewhere no tool does: there it is written when someone asks for
it with :func:`write_index`, so a build costs no more with ten thousand tags than with one.
docs/decisions/0017-index.md has the figures.

Source: image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from nixery_core.errors import InvalidDocument, ObjectNotFound
from nixery_core.model.oci import INDEX, LAYOUT_BYTES, REF_NAME, Descriptor, ImageIndex, canonical_json
from nixery_core.storage import _files
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import INDEX_KEY, OCI_LAYOUT_KEY, REFS, parse_ref_key
from nixery_core.storage.local import LocalBackend

_WORKERS = 16
_JSON = "application/json"


def write_index(backend: Backend) -> int:
    """Write ``index.json`` from the refs; return how many names it has.

    Each ref is read once.  A name that is published meanwhile is in it or not, and the next call
    has it; what is written is always a valid index.

    >>> from nixery_core.storage.plugins import open_backend
    >>> write_index(open_backend("memory://write-index"))
    0
    """
    with _locked(backend):
        backend.create(OCI_LAYOUT_KEY, LAYOUT_BYTES, content_type=_JSON)
        index = read_names(backend)
        backend.replace(INDEX_KEY, index.to_bytes(), content_type=INDEX)
    return len(index.manifests)


def read_names(backend: Backend) -> ImageIndex:
    """Return the index that the refs make: an entry for each name and tag, sorted by both."""

    def read(key: str) -> Descriptor | None:
        try:
            return Descriptor.from_bytes(backend.get(key))
        except (ObjectNotFound, InvalidDocument):
            # removed since it was listed, or no ref of ours: the index can do without it
            return None

    keys = {name: info.key for info in backend.list(REFS) if (name := parse_ref_key(info.key)) is not None}
    names = sorted(keys)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="nixery-core-index") as pool:
        found = pool.map(read, [keys[name] for name in names])
        return ImageIndex(
            manifests=tuple(_named(*name, entry) for name, entry in zip(names, found, strict=True) if entry is not None)
        )


def index_holds(backend: Backend, name: str, tag: str, manifest: Descriptor) -> bool:
    """Return whether ``index.json`` has this entry, where it follows each change; True elsewhere."""
    if not isinstance(backend, LocalBackend):
        return True
    try:
        # the index is canonical JSON, so each entry is in it byte for byte; this does not parse ten thousand others
        return _named(name, tag, manifest).to_bytes() in backend.get(INDEX_KEY)
    except ObjectNotFound:
        return False


@contextlib.contextmanager
def keep_index(backend: Backend) -> Iterator[IndexChange]:
    """Hold the index while names change in the body, and write it at the end if it follows each change."""
    change = IndexChange()
    with _locked(backend):
        yield change
        if isinstance(backend, LocalBackend):
            backend.create(OCI_LAYOUT_KEY, LAYOUT_BYTES, content_type=_JSON)
            index = change.apply(_entries(backend))
            backend.replace(INDEX_KEY, _index_bytes(index), content_type=INDEX)
        elif backend.create(OCI_LAYOUT_KEY, LAYOUT_BYTES, content_type=_JSON):
            # an image layout without names is valid, one without an index is not
            backend.create(INDEX_KEY, ImageIndex(manifests=()).to_bytes(), content_type=INDEX)


def refresh_index(backend: Backend) -> None:
    """Write ``index.json`` where it does not follow each change."""
    if not isinstance(backend, LocalBackend):
        write_index(backend)


def index_problem(backend: Backend) -> str:
    """Return what is wrong with ``index.json`` and ``oci-layout``, or an empty text; writes nothing.

    Outside of directories an index may lack names, but may not have others than the refs.
    """
    with _locked(backend, create=False):
        names = {entry.annotations[REF_NAME]: entry.digest for entry in read_names(backend).manifests}
        try:
            index = ImageIndex.from_bytes(backend.get(INDEX_KEY))
        except ObjectNotFound:
            return "there is none" if names else ""
        except InvalidDocument as error:
            return error.message
        if backend.stat(OCI_LAYOUT_KEY) is None:
            return "there is no oci-layout beside it"
    entries = {entry.annotations.get(REF_NAME, ""): entry.digest for entry in index.manifests}
    wrong = sorted(name for name, digest in entries.items() if names.get(name) != digest)
    lacking = sorted(names.keys() - entries.keys()) if isinstance(backend, LocalBackend) else []
    what = [(wrong, "is not what the name stands for"), (lacking, "is not in it")]
    return "; ".join(
        f"{found[0]} {is_not}" + (f", and so are {len(found) - 1} more" if len(found) > 1 else "")
        for found, is_not in what
        if found
    )


class IndexChange:
    """Names that were set or removed."""

    def __init__(self) -> None:
        self._changes: dict[str, dict[str, Any] | None] = {}

    def set(self, name: str, tag: str, manifest: Descriptor) -> None:
        """Note that *name*:*tag* stands for *manifest*."""
        self._changes[f"{name}:{tag}"] = _named(name, tag, manifest).to_json()

    def remove(self, name: str, tag: str) -> None:
        """Note that there is no *name*:*tag*."""
        self._changes[f"{name}:{tag}"] = None

    def apply(self, entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return *entries* with the changes."""
        changed = {**entries, **self._changes}
        return {name: entry for name, entry in changed.items() if entry is not None}


def _entries(backend: Backend) -> dict[str, dict[str, Any]]:
    """Return the entries of the index by their names; of the refs, where it cannot be read."""
    try:
        # plain JSON: to check ten thousand entries that we wrote takes ten times as long
        entries = json.loads(backend.get(INDEX_KEY))["manifests"]
        return {entry["annotations"][REF_NAME]: entry for entry in entries}
    except (ObjectNotFound, ValueError, KeyError, TypeError, RecursionError):
        return {entry.annotations[REF_NAME]: entry.to_json() for entry in read_names(backend).manifests}


def _index_bytes(entries: dict[str, dict[str, Any]]) -> bytes:
    empty = ImageIndex(manifests=()).to_json()
    names = sorted(entries, key=lambda name: name.rpartition(":")[::2])
    return canonical_json({**empty, "manifests": [entries[name] for name in names]})


def _named(name: str, tag: str, manifest: Descriptor) -> Descriptor:
    return attrs.evolve(manifest, annotations={**manifest.annotations, REF_NAME: f"{name}:{tag}"})


@contextlib.contextmanager
def _locked(backend: Backend, *, create: bool = True) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if isinstance(backend, LocalBackend):
            directory = backend.root / REFS
            with _files.mapped(REFS, backend.root):
                if create:
                    _files.make_directories(directory)
                if directory.is_dir():
                    stack.enter_context(_files.locked(directory))
        yield

"""The storage as an OCI image layout: names, and the index that other tools read.

Each tag is an object of its own, so two builders never overwrite each other's tags;
``index.json`` is made from them.  Source: image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from nixery_core.errors import InvalidDocument, ObjectNotFound
from nixery_core.model.oci import INDEX, LAYOUT_BYTES, REF_NAME, Descriptor, ImageIndex
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import INDEX_KEY, OCI_LAYOUT_KEY, parse_ref_key, ref_key

_REFS = "refs/"
_JSON = "application/json"


def publish_ref(backend: Backend, name: str, tag: str, manifest: Descriptor) -> None:
    """Make *name*:*tag* stand for *manifest*, and bring ``index.json`` up to date."""
    if read_ref(backend, name, tag) == manifest and _is_indexed(backend, name, tag, manifest):
        return
    backend.create(OCI_LAYOUT_KEY, LAYOUT_BYTES, content_type=_JSON)
    backend.replace(ref_key(name, tag), manifest.to_bytes(), content_type=_JSON)
    write_index(backend)


def read_ref(backend: Backend, name: str, tag: str) -> Descriptor | None:
    """Return what *name*:*tag* stands for, or None where there is no such name."""
    try:
        return Descriptor.from_bytes(backend.get(ref_key(name, tag)))
    except ObjectNotFound:
        return None


def list_refs(backend: Backend) -> Iterator[tuple[str, str, Descriptor]]:
    """Give every name, tag and manifest descriptor, sorted by name and tag."""
    for info in backend.list(_REFS):
        parsed = parse_ref_key(info.key)
        if parsed is None:
            continue
        try:
            yield (*parsed, Descriptor.from_bytes(backend.get(info.key)))
        except (ObjectNotFound, InvalidDocument):
            # removed since it was listed, or no ref of ours: the index can do without it
            continue


def write_index(backend: Backend) -> None:
    """Write ``index.json`` from the refs.

    A ref that another builder adds meanwhile is seen by whoever lists last: each writer lists
    again after its write, and writes again if the refs have changed.
    """
    written = None
    while (index := _index_bytes(backend)) != written:
        backend.replace(INDEX_KEY, index, content_type=INDEX)
        written = index


def _is_indexed(backend: Backend, name: str, tag: str, manifest: Descriptor) -> bool:
    try:
        index = ImageIndex.from_bytes(backend.get(INDEX_KEY))
    except (ObjectNotFound, InvalidDocument):
        return False
    return _named(name, tag, manifest) in index.manifests


def _index_bytes(backend: Backend) -> bytes:
    return ImageIndex(manifests=tuple(_named(*ref) for ref in list_refs(backend))).to_bytes()


def _named(name: str, tag: str, manifest: Descriptor) -> Descriptor:
    return attrs.evolve(manifest, annotations={**manifest.annotations, REF_NAME: f"{name}:{tag}"})

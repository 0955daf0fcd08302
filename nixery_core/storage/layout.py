"""Names of images in the storage: each tag is an object of its own, so no two writers disturb each other.

``index.json``, which other tools read, is made from them: see :mod:`nixery_core.storage.image_index`.
"""

from __future__ import annotations

from collections.abc import Iterator

from nixery_core.errors import InvalidDocument, ObjectNotFound
from nixery_core.model.oci import Descriptor
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import image_blobs
from nixery_core.storage.image_index import index_holds, keep_index
from nixery_core.storage.keys import REFS, parse_ref_key, ref_key, tags_prefix
from nixery_core.storage.pins import pinned

_JSON = "application/json"


def publish_ref(backend: Backend, name: str, tag: str, manifest: Descriptor) -> None:
    """Make *name*:*tag* stand for *manifest*, whose blobs are all in the storage.

    A name never stands for an image that is not whole, also while garbage is removed elsewhere.
    Where the name stands for *manifest* already this costs one look.

    Args:
        backend: The storage.
        name: Name of the image.
        tag: Its tag.
        manifest: Of an image manifest or an index.

    Raises:
        ObjectNotFound: A blob of the image is not in the storage, or was removed just now: write it again.
        DigestMismatch, InvalidDocument: The manifest cannot be read.
        StorageError: The storage failed.
    """
    key = ref_key(name, tag)
    try:
        known = read_ref(backend, name, tag) == manifest
    except InvalidDocument:
        known = False
    if known and index_holds(backend, name, tag, manifest):
        return
    with pinned(backend, tuple(image_blobs(backend, manifest))), keep_index(backend) as index:
        backend.replace(key, manifest.to_bytes(), content_type=_JSON)
        index.set(name, tag, manifest)


def delete_ref(backend: Backend, name: str, tag: str) -> bool:
    """Forget what *name*:*tag* stands for; return whether there was such a name.

    The blobs stay until garbage is collected.
    """
    key = ref_key(name, tag)
    with keep_index(backend) as index:
        existed = backend.stat(key) is not None
        backend.delete(key)
        index.remove(name, tag)
    return existed


def read_ref(backend: Backend, name: str, tag: str) -> Descriptor | None:
    """Return what *name*:*tag* stands for, or None where there is no such name; raises InvalidDocument."""
    try:
        return Descriptor.from_bytes(backend.get(ref_key(name, tag)))
    except ObjectNotFound:
        return None


def list_tags(backend: Backend, name: str) -> Iterator[str]:
    """Give the tags of one image in lexical order; nothing else is listed, and nothing is read.

    >>> from nixery_core.storage.plugins import open_backend
    >>> backend = open_backend("memory://list-tags")
    >>> for tag in ["v2", "v10", "latest"]:
    ...     backend.replace(ref_key("git", tag), b"{}")
    >>> list(list_tags(backend, "git"))
    ['latest', 'v10', 'v2']
    """
    for info in backend.list(tags_prefix(name)):
        parsed = parse_ref_key(info.key)
        if parsed is not None and parsed[0] == name:
            yield parsed[1]


def list_names(backend: Backend) -> Iterator[tuple[str, str]]:
    """Give every name and tag, in the order of their keys; nothing is read but the listing."""
    for info in backend.list(REFS):
        parsed = parse_ref_key(info.key)
        if parsed is not None:
            yield parsed


def list_refs(backend: Backend) -> Iterator[tuple[str, str, Descriptor]]:
    """Give every name, tag and manifest descriptor, in the order of their keys."""
    for name, tag in list_names(backend):
        try:
            found = read_ref(backend, name, tag)
        except InvalidDocument:
            # no ref of ours
            continue
        # one that was removed since it was listed is no longer a name
        if found is not None:
            yield name, tag, found

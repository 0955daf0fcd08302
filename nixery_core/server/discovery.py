"""What is in the storage under a name: its tags, what refers to a manifest, which digests belong to it.

Plain calls that wait for the storage; the registry runs them in threads.
"""

from __future__ import annotations

import attrs

from nixery_core.errors import DigestMismatch, InvalidDocument, ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, Descriptor, ImageIndex, Manifest
from nixery_core.server.documents import ServedManifest, served_manifest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.layout import list_tags, read_ref


def tags_of(backend: Backend, name: str) -> list[str]:
    """Return the tags of a name, in the order of their bytes; raises StorageError."""
    return sorted(list_tags(backend, name))


def referrers_tag(digest: Digest) -> str:
    """Return the tag under which clients list what refers to a manifest (spec, "Referrers Tag Schema").

    >>> referrers_tag(Digest.of(b""))[:20]
    'sha256-e3b0c44298fc1'
    """
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def referrers_of(backend: Backend, name: str, digest: Digest, artifact_type: str | None) -> bytes:
    """Return the index of what refers to a manifest, perhaps of one type only; raises StorageError."""
    listed = _ref(backend, name, referrers_tag(digest))
    manifests: list[Descriptor] = []
    if listed is not None:
        try:
            entries = ImageIndex.from_bytes(read_blob(backend, listed)).manifests
        except (ObjectNotFound, InvalidDocument, DigestMismatch):
            entries = ()
        manifests = [full for entry in entries if (full := _described(backend, entry, digest)) is not None]
    if artifact_type is not None:
        manifests = [entry for entry in manifests if entry.artifact_type == artifact_type]
    return ImageIndex(manifests=tuple(manifests)).to_bytes()


def _described(backend: Backend, entry: Descriptor, subject: Digest) -> Descriptor | None:
    """Return the descriptor with the type and the annotations of what it names, or None where that is no referrer."""
    if entry.media_type == INDEX:
        return entry
    try:
        manifest = Manifest.from_bytes(read_blob(backend, entry))
    except (ObjectNotFound, InvalidDocument, DigestMismatch):
        return None
    if manifest.subject is None or manifest.subject.digest != subject:
        return None
    return attrs.evolve(
        entry,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=dict(manifest.annotations),
    )


def digests_of(backend: Backend, name: str) -> frozenset[str]:
    """Return every digest that belongs to an image of a name: manifests, configurations, layers."""
    digests: set[str] = set()
    for tag in tags_of(backend, name):
        descriptor = _ref(backend, name, tag)
        if descriptor is not None:
            _collect(backend, descriptor.digest, digests)
    return frozenset(digests)


def _collect(backend: Backend, digest: Digest, digests: set[str]) -> None:
    digests.add(str(digest))
    manifest = _manifest(backend, digest)
    if manifest is None:
        return
    digests |= manifest.blobs
    for child in manifest.children:
        if child not in digests:
            _collect(backend, Digest.parse(child), digests)


def _manifest(backend: Backend, digest: Digest) -> ServedManifest | None:
    try:
        return served_manifest(read_blob(backend, digest))
    except (ObjectNotFound, InvalidDocument, DigestMismatch):
        return None


def _ref(backend: Backend, name: str, tag: str) -> Descriptor | None:
    try:
        return read_ref(backend, name, tag)
    except InvalidDocument:
        # damaged: the next build of the name mends it
        return None

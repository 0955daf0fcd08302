"""An image as an OCI image layout in one tar file (``oci-archive:`` of skopeo and podman)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import attrs

from nixery_core.archive import ArchiveEntry, write_archive
from nixery_core.errors import InvalidName
from nixery_core.export._blobs import read_config, read_manifest
from nixery_core.export._members import document, member
from nixery_core.model.digest import Digest
from nixery_core.model.oci import LAYOUT_BYTES, REF_NAME, Descriptor, ImageIndex
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import verified
from nixery_core.storage.keys import blob_key
from nixery_core.stores.reader import EntryType


def write_oci_archive(
    manifest: Descriptor, backend: Backend, *, reference: str, write: Callable[[bytes], object]
) -> None:
    """Write the image *manifest* as an OCI archive: layers as they are in the storage, each once.

    Equal images and references give equal bytes.  Memory does not grow with the image.

    Args:
        manifest: Descriptor of an image manifest in *backend*.
        backend: Where its blobs are; every byte is checked against its digest.
        reference: What the archive calls the image: ``shell/git:latest``.
        write: Takes the archive in pieces; what was written is only an archive if no error follows.

    Raises:
        InvalidDocument: *manifest* is no image manifest.
        InvalidName: *reference* is empty or not printable.
        StorageError: A blob is missing (ObjectNotFound) or damaged (DigestMismatch).

    Source: image-spec 1.1, image-layout.md.
    """
    if not reference or not reference.isprintable():
        raise InvalidName(f"{reference!r} cannot name an image", hint="write name:tag")
    image = read_manifest(backend, manifest)
    read_config(backend, image)
    named = attrs.evolve(manifest, annotations={**manifest.annotations, REF_NAME: reference})
    blobs = {blob.digest: blob for blob in (manifest, image.config, *image.layers)}
    write_archive(_entries(backend, blobs, ImageIndex(manifests=(named,))), write)


def _entries(backend: Backend, blobs: dict[Digest, Descriptor], index: ImageIndex) -> Iterator[ArchiveEntry]:
    members = {blob_key(digest): _blob(backend, blob) for digest, blob in blobs.items()}
    members["index.json"] = document("index.json", index.to_bytes())
    members["oci-layout"] = document("oci-layout", LAYOUT_BYTES)
    for key in [*members]:
        parts = key.split("/")
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            members[parent] = ArchiveEntry(name=parent.encode(), type=EntryType.DIRECTORY, mode=0o755)
    for key in sorted(members, key=lambda key: key.split("/")):
        yield members[key]


def _blob(backend: Backend, blob: Descriptor) -> ArchiveEntry:
    return member(blob_key(blob.digest), blob.size, partial(verified, backend, blob))

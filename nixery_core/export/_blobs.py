"""Blobs on their way out of the storage, checked while they pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nixery_core.compression import codec_for_media_type
from nixery_core.errors import DigestMismatch, InvalidDocument, StorageError
from nixery_core.model.digest import Digest
from nixery_core.model.oci import MANIFEST, Descriptor, ImageConfig, Manifest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import read_blob, verified
from nixery_core.storage.keys import blob_key

_DAMAGED = "it was damaged or overwritten: nixery-core fsck --repair removes it, and the next build writes it"


def read_manifest(backend: Backend, descriptor: Descriptor) -> Manifest:
    """Return an image manifest; raises InvalidDocument for an index, and StorageError."""
    if descriptor.media_type != MANIFEST:
        raise InvalidDocument(
            f"{descriptor.digest} is no image manifest but {descriptor.media_type}",
            hint="export the image of one platform",
        )
    return Manifest.from_bytes(read_blob(backend, descriptor))


def read_config(backend: Backend, manifest: Manifest) -> tuple[bytes, ImageConfig]:
    """Return the image configuration and its bytes; raises InvalidDocument and StorageError."""
    data = read_blob(backend, manifest.config)
    config = ImageConfig.from_bytes(data)
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        raise InvalidDocument(
            f"the manifest has {layers} layers, its configuration {manifest.config.digest} has {diff_ids}"
        )
    return data, config


def unpacked(backend: Backend, descriptor: Descriptor, diff_id: Digest, size: int | None = None) -> Iterator[bytes]:
    """Give the archive in the layer *descriptor*; raises DigestMismatch, and StorageError for damaged layers.

    Where a *size* is given, other sizes are a DigestMismatch too, before the first byte too many.
    """
    state = hashlib.new(diff_id.algorithm)
    count = 0
    try:
        for piece in codec_for_media_type(descriptor.media_type).decompress(verified(backend, descriptor)):
            count += len(piece)
            if size is not None and count > size:
                break
            state.update(piece)
            yield piece
    except StorageError as error:
        if error.key:
            raise
        # a codec does not know which blob it reads
        raise StorageError(
            f"the blob {descriptor.digest}: {error.message}", key=blob_key(descriptor.digest), hint=error.hint
        ) from error
    if size is not None and count != size:
        change = "more" if count > size else "fewer"
        raise _mismatch(descriptor, f"unpacks to {change} than the {size} bytes that were announced")
    if state.hexdigest() != diff_id.hex:
        raise _mismatch(descriptor, f"unpacks to {diff_id.algorithm}:{state.hexdigest()}, not {diff_id}")


def unpacked_size(backend: Backend, descriptor: Descriptor, diff_id: Digest) -> int:
    """Return the size of the archive in a layer, bytes; reads the layer, and raises like :func:`unpacked`."""
    return sum(len(piece) for piece in unpacked(backend, descriptor, diff_id))


def _mismatch(descriptor: Descriptor, what: str) -> DigestMismatch:
    return DigestMismatch(f"the blob {descriptor.digest} {what}", key=blob_key(descriptor.digest), hint=_DAMAGED)

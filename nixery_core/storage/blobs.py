"""Small blobs by their content: documents of an image, read back with their digests checked."""

from __future__ import annotations

import hashlib

from nixery_core.errors import DigestMismatch
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Descriptor
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import blob_key


def put_blob(backend: Backend, data: bytes, *, media_type: str) -> Descriptor:
    """Store *data* as a blob and return its descriptor; raises StorageError.

    >>> from nixery_core.storage.plugins import open_backend
    >>> backend = open_backend("memory://put-blob")
    >>> descriptor = put_blob(backend, b"{}", media_type="application/json")
    >>> read_blob(backend, descriptor)
    b'{}'
    """
    descriptor = Descriptor.of(media_type, data)
    if blob_exists(backend, descriptor):
        return descriptor
    writer = backend.open_blob()
    try:
        writer.write(data)
        writer.commit(descriptor.digest)
    finally:
        # after a commit this does nothing
        writer.cancel()
    return descriptor


def read_blob(backend: Backend, blob: Descriptor | Digest) -> bytes:
    """Return a small blob whole; raises ObjectNotFound, and DigestMismatch for bytes that are not its own."""
    digest = blob.digest if isinstance(blob, Descriptor) else blob
    key = blob_key(digest)
    data = backend.get(key)
    hint = "the object was damaged or overwritten: delete it and build the image again"
    if isinstance(blob, Descriptor) and len(data) != blob.size:
        raise DigestMismatch(f"the blob {digest} has {len(data)} bytes, not {blob.size}", key=key, hint=hint)
    if hashlib.new(digest.algorithm, data).hexdigest() != digest.hex:
        raise DigestMismatch(f"the blob {digest} holds other bytes", key=key, hint=hint)
    return data


def blob_exists(backend: Backend, blob: Descriptor | Digest) -> bool:
    """Return whether the blob is in the storage, with the size of its descriptor; its bytes are not read."""
    info = backend.stat(blob_key(blob.digest if isinstance(blob, Descriptor) else blob))
    return info is not None and (not isinstance(blob, Descriptor) or info.size == blob.size)

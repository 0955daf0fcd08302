"""Blobs by their content, read back with their digests checked; what belongs to an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nixery_core.errors import DigestMismatch
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor, ImageIndex, Manifest
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
    digest = _digest(blob)
    data = backend.get(blob_key(digest))
    if isinstance(blob, Descriptor) and len(data) != blob.size:
        raise _mismatch(digest, f"has {len(data)} bytes, not {blob.size}")
    if hashlib.new(digest.algorithm, data).hexdigest() != digest.hex:
        raise _mismatch(digest, "holds other bytes")
    return data


def verified(backend: Backend, blob: Descriptor | Digest) -> Iterator[bytes]:
    """Give the bytes of a blob of any size in pieces; the last piece comes only when all of them are right.

    So whoever counts on the length never has a whole blob that is wrong: the storage may be damaged,
    a cache between it and us may be, and a client that gets fewer bytes than announced asks again.

    Raises:
        ObjectNotFound: At once, before the first piece is asked for.
        DigestMismatch: In the place of the last piece, or of the first one that is too much.

    >>> from nixery_core.storage.plugins import open_backend
    >>> backend = open_backend("memory://verified")
    >>> b"".join(verified(backend, put_blob(backend, b"{}", media_type="application/json")))
    b'{}'
    """
    return _verified(backend.stream(blob_key(_digest(blob))), blob)


def _verified(pieces: Iterator[bytes], blob: Descriptor | Digest) -> Iterator[bytes]:
    digest = _digest(blob)
    expected = blob.size if isinstance(blob, Descriptor) else None
    state = hashlib.new(digest.algorithm)
    size = 0
    last: bytes | None = None
    for piece in pieces:
        size += len(piece)
        if expected is not None and size > expected:
            raise _mismatch(digest, f"has more than its {expected} bytes")
        if last is not None:
            yield last
        state.update(piece)
        last = piece
    if expected is not None and size < expected:
        raise _mismatch(digest, f"has fewer than its {expected} bytes")
    if state.hexdigest() != digest.hex:
        raise _mismatch(digest, "holds other bytes")
    if last is not None:
        yield last


def blob_exists(backend: Backend, blob: Descriptor | Digest) -> bool:
    """Return whether the blob is in the storage, with the size of its descriptor; its bytes are not read."""
    info = backend.stat(blob_key(_digest(blob)))
    return info is not None and (not isinstance(blob, Descriptor) or info.size == blob.size)


def image_blobs(backend: Backend, manifest: Descriptor) -> Iterator[Descriptor]:
    """Give *manifest* and every blob that its image needs, each once: manifests of an index, configurations, layers.

    Raises:
        ObjectNotFound: A manifest is not in the storage.
        DigestMismatch, InvalidDocument: A manifest cannot be read.
    """
    seen: set[Digest] = set()
    waiting = [manifest]
    while waiting:
        blob = waiting.pop()
        if blob.digest in seen:
            continue
        seen.add(blob.digest)
        yield blob
        if blob.media_type in (MANIFEST, INDEX):
            waiting.extend(reversed(named_blobs(blob.media_type, read_blob(backend, blob))))


def named_blobs(media_type: str, document: bytes) -> tuple[Descriptor, ...]:
    """Return the blobs that a manifest or an index names, none for other media types; raises InvalidDocument."""
    if media_type == MANIFEST:
        manifest = Manifest.from_bytes(document)
        return (manifest.config, *manifest.layers)
    if media_type == INDEX:
        return ImageIndex.from_bytes(document).manifests
    return ()


def _digest(blob: Descriptor | Digest) -> Digest:
    return blob.digest if isinstance(blob, Descriptor) else blob


def _mismatch(digest: Digest, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"the blob {digest} {what}",
        key=blob_key(digest),
        hint="it was damaged or overwritten: nixery-core fsck --repair removes it, and the next build writes it",
    )

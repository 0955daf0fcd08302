"""What images need: the blobs that are reached from manifests and indexes."""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs

from nixery_core.errors import DigestMismatch, InvalidDocument, ObjectNotFound, StorageError
from nixery_core.keeping.parallel import each
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor
from nixery_core.storage.backend import Backend, ObjectInfo
from nixery_core.storage.blobs import named_blobs, read_blob
from nixery_core.storage.keys import blob_key, parse_blob_key

LARGEST_MANIFEST = 4 << 20
"""Bytes; registries take no larger manifests (distribution-spec, "Pushing Manifests")."""

# a blob of that size is read whole at once; of a larger one, its first byte tells whether it can be a document
_SMALL = 64 << 10


@attrs.frozen
class FoundManifest:
    """A blob that turned out to be a manifest or an index."""

    info: ObjectInfo
    media_type: str
    named: tuple[Descriptor, ...]


class Marks:
    """The blobs that are needed; grows as manifests are added."""

    def __init__(self, backend: Backend, *, workers: int) -> None:
        self._backend = backend
        self._workers = workers
        # raw digests: there may be a million
        self._marked: set[bytes] = set()
        self._expanded: set[bytes] = set()

    def __contains__(self, digest: Digest) -> bool:
        return bytes.fromhex(digest.hex) in self._marked

    def add(self, digests: Iterable[Digest]) -> None:
        """Mark single blobs."""
        self._marked.update(bytes.fromhex(digest.hex) for digest in digests)

    def add_images(self, manifests: Iterable[Descriptor]) -> None:
        """Mark manifests and indexes, and all that they need.

        A manifest that is not in the storage needs nothing.

        Raises:
            StorageError: One cannot be read: nobody can tell then what it needs.
        """
        waiting = list(manifests)
        while waiting:
            self.add(manifest.digest for manifest in waiting)
            new = {blob.digest: blob for blob in waiting if bytes.fromhex(blob.digest.hex) not in self._expanded}
            self._expanded.update(bytes.fromhex(digest.hex) for digest in new)
            documents = [blob for blob in new.values() if blob.media_type in (MANIFEST, INDEX)]
            waiting = [named for found in each(self._named, documents, workers=self._workers) for named in found]

    def _named(self, manifest: Descriptor) -> tuple[Descriptor, ...]:
        try:
            return named_blobs(manifest.media_type, read_blob(self._backend, manifest))
        except ObjectNotFound:
            return ()
        except (DigestMismatch, InvalidDocument) as error:
            raise StorageError(
                f"the manifest {manifest.digest} cannot be read, so nobody can tell what it needs: {error.message}",
                key=blob_key(manifest.digest),
                hint="run nixery-core fsck --repair first; nothing was removed",
            ) from error


def find_manifests(backend: Backend, blobs: Iterable[ObjectInfo], *, workers: int) -> list[FoundManifest]:
    """Return those of *blobs* that are manifests or indexes, told by their content; reads small ones only."""
    small = (info for info in blobs if info.size <= LARGEST_MANIFEST)
    found = each(lambda info: _as_manifest(backend, info), small, workers=workers)
    return [manifest for manifest in found if manifest is not None]


def _as_manifest(backend: Backend, info: ObjectInfo) -> FoundManifest | None:
    digest = parse_blob_key(info.key)
    if digest is None:
        return None
    try:
        if info.size > _SMALL and b"".join(backend.stream(info.key, 0, 1)) != b"{":
            return None
        data = read_blob(backend, digest)
        if not data.startswith(b"{"):
            return None
        media_type = json.loads(data).get("mediaType")
        if media_type not in (MANIFEST, INDEX):
            return None
        return FoundManifest(info, media_type, named_blobs(media_type, data))
    except (ObjectNotFound, DigestMismatch, InvalidDocument, ValueError, RecursionError):
        # gone, damaged, or a layer that begins like a document: nobody can use it as a manifest
        return None

"""The manifest cache: everything of an image that was built before, under its cache key."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from contextlib import suppress

import attrs

from nixery_core.errors import DigestMismatch, InvalidDocument, ObjectNotFound, StorageError
from nixery_core.layer_writer import BuiltLayer
from nixery_core.model.oci import Descriptor, Document, ImageConfig, Manifest
from nixery_core.sources import CacheKey
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import blob_exists, read_blob
from nixery_core.storage.keys import manifest_cache_key

FORMAT_VERSION = 1

# how coarsely the last use of an entry is known, seconds; clocks that differ by less than that do no harm
_RENEW_AFTER = 24 * 3600.0


@attrs.frozen(kw_only=True)
class CachedImage(Document):
    """What the manifest cache keeps of an image."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=attrs.validators.in_([FORMAT_VERSION]))
    manifest: Descriptor
    layers: tuple[BuiltLayer, ...]
    """In manifest order, with what the manifest itself does not tell."""


@attrs.frozen(kw_only=True)
class FoundImage:
    """A cached image whose blobs are all there."""

    entry: CachedImage
    manifest: Manifest
    config: ImageConfig


class ManifestCache:
    """Finds and keeps whole images; an entry whose blobs are not all there is a miss."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def find(self, key: CacheKey, pool: Executor) -> FoundImage | None:
        """Return the image under *key* after looking at each of its blobs, or None.

        An entry that is used stays young, so the images that are in use are not taken for garbage.
        """
        where = manifest_cache_key(key.value)
        try:
            data = self._backend.get(where)
            entry = CachedImage.from_bytes(data)
            manifest = Manifest.from_bytes(read_blob(self._backend, entry.manifest))
            config = ImageConfig.from_bytes(read_blob(self._backend, manifest.config))
        except (ObjectNotFound, DigestMismatch, InvalidDocument):
            return None
        if tuple(layer.descriptor for layer in entry.layers) != manifest.layers:
            return None
        exist = pool.map(lambda descriptor: blob_exists(self._backend, descriptor), manifest.layers)
        if not all(exist):
            return None
        self._renew(where, data)
        return FoundImage(entry=entry, manifest=manifest, config=config)

    def store(self, key: CacheKey, entry: CachedImage, pool: Executor) -> CachedImage:
        """Keep *entry* unless a whole image is there already; return the one that is kept."""
        data, where = entry.to_bytes(), manifest_cache_key(key.value)
        if self._backend.create(where, data, content_type="application/json"):
            return entry
        winner = self.find(key, pool)
        if winner is not None:
            return winner.entry
        # what is there is broken, so nobody can have been served from it
        self._backend.replace(where, data, content_type="application/json")
        return entry

    def _renew(self, where: str, data: bytes) -> None:
        # a storage that may only be read is found in as well, and nobody collects garbage there
        with suppress(StorageError):
            info = self._backend.stat(where)
            if info is not None and info.modified is not None and time.time() - info.modified > _RENEW_AFTER:
                self._backend.replace(where, data, content_type="application/json")

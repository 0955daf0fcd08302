"""What the registry remembers of manifests, so that a warm pull asks neither storage nor source."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from nixery_core.server.documents import ServedManifest


class ManifestMemory:
    """Manifests by digest, without an end, and by name and tag, for a while; both within bounds.

    Used from one event loop.

    Args:
        tag_ttl: How long a tag is believed, seconds; 0 for not at all.
        max_bytes: Most bytes of manifests that are kept; the one not asked for longest goes first.
        max_tags: Most names with tags that are kept.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        tag_ttl: float,
        max_bytes: int = 64 << 20,
        max_tags: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tag_ttl = tag_ttl
        self._max_bytes = max_bytes
        self._max_tags = max_tags
        self._clock = clock
        self._bytes = 0
        self._by_digest: OrderedDict[str, ServedManifest] = OrderedDict()
        self._holders: dict[str, set[str]] = {}
        self._by_tag: OrderedDict[tuple[str, str], tuple[float, ServedManifest]] = OrderedDict()

    def of_digest(self, digest: str) -> ServedManifest | None:
        """Return the manifest of a digest, or None."""
        found = self._by_digest.get(digest)
        if found is not None:
            self._by_digest.move_to_end(digest)
        return found

    def of_tag(self, name: str, tag: str) -> ServedManifest | None:
        """Return what a name and tag stood for a moment ago, or None."""
        known = self._by_tag.get((name, tag))
        if known is None:
            return None
        expires, manifest = known
        if self._clock() >= expires or manifest.digest not in self._by_digest:
            del self._by_tag[name, tag]
            return None
        return manifest

    def keep(self, manifest: ServedManifest) -> None:
        """Remember a manifest by its digest."""
        if manifest.digest in self._by_digest:
            return
        self._by_digest[manifest.digest] = manifest
        self._bytes += len(manifest.body)
        for named in (*manifest.blobs, *manifest.children):
            self._holders.setdefault(named, set()).add(manifest.digest)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._by_digest)))

    def keep_tag(self, name: str, tag: str, manifest: ServedManifest) -> None:
        """Remember what a name and tag stand for."""
        self.keep(manifest)
        if self._tag_ttl <= 0:
            return
        self._by_tag[name, tag] = (self._clock() + self._tag_ttl, manifest)
        self._by_tag.move_to_end((name, tag))
        while len(self._by_tag) > self._max_tags:
            self._by_tag.popitem(last=False)

    def forget_blob(self, digest: str) -> None:
        """Forget every manifest that names a blob which is gone, so that the image is built again."""
        broken = {digest} & self._by_digest.keys()
        waiting = [digest]
        while waiting:
            holders = self._holders.get(waiting.pop(), set()) - broken
            broken |= holders
            waiting.extend(holders)
        if not broken:
            return
        for known in broken:
            self._drop(known)
        for key in [key for key, (_, manifest) in self._by_tag.items() if manifest.digest in broken]:
            del self._by_tag[key]

    def _drop(self, digest: str) -> None:
        manifest = self._by_digest.pop(digest)
        self._bytes -= len(manifest.body)
        for named in (*manifest.blobs, *manifest.children):
            holders = self._holders[named]
            holders.discard(digest)
            if not holders:
                del self._holders[named]

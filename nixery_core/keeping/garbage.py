"""Removing the blobs that no image needs, while images are built and pulled.

docs/decisions/0016-garbage.md tells why no name ever stands for an image that lacks a blob.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import attrs

from nixery_core.errors import InvalidConfig, InvalidDocument, ObjectNotFound, StorageError
from nixery_core.keeping.candidates import read_candidates, write_candidates
from nixery_core.keeping.clock import is_older, old_uploads, storage_time
from nixery_core.keeping.marks import FoundManifest, Marks, find_manifests
from nixery_core.keeping.parallel import each
from nixery_core.keeping.problem import KeepingProgress, ProgressCallback, ignore_progress
from nixery_core.keeping.sweep import BATCH, Sweeper
from nixery_core.layer_writer import BuiltLayer
from nixery_core.manifest_cache import CachedImage
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor
from nixery_core.storage.backend import Backend, ObjectInfo
from nixery_core.storage.capabilities import SupportsUploads
from nixery_core.storage.image_index import refresh_index
from nixery_core.storage.keys import (
    BLOBS,
    CLOCKS,
    LAYERS,
    LEASE_LIFETIME,
    LEASES,
    MANIFESTS,
    PINS,
    REFS,
    STAGING,
    SWEEPS,
    blob_key,
    parse_blob_key,
)
from nixery_core.storage.pins import PIN_LIFETIME, list_pins, read_pin

DEFAULT_GRACE = 24 * 3600.0
"""Seconds for which a blob stays after nothing needs it any more."""
DEFAULT_KEEP = 30 * 24 * 3600.0
"""Seconds for which an image without a name stays after it was last asked for."""
DEFAULT_WORKERS = 16
UNFINISHED_LIFETIME = 24 * 3600.0
"""Seconds after which the writer of something unfinished counts as dead, whatever the grace is."""


@attrs.frozen(kw_only=True)
class GcReport:
    """What a collection of garbage found and did, or would do."""

    dry_run: bool
    names: int
    """Names that stand for an image."""
    kept_blobs: int
    """Blobs that images need, or that are too young to tell."""
    kept_bytes: int
    waiting_blobs: int
    """Blobs that nothing needs, and that stay until they have been garbage for the grace period."""
    waiting_bytes: int
    next_in: float | None
    """Seconds until the first of them may be removed; None where none waits."""
    removed_blobs: int
    """Blobs that were removed, or would be."""
    removed_bytes: int
    removed_entries: int
    """Cache entries that were removed, or would be, because they speak of garbage."""
    removed_unfinished: int
    """Staged objects, and uploads in parts, that were removed, or would be, a day after their writer died."""


def collect_garbage(
    backend: Backend,
    *,
    grace: float = DEFAULT_GRACE,
    keep: float = DEFAULT_KEEP,
    dry_run: bool = False,
    workers: int = DEFAULT_WORKERS,
    on_progress: ProgressCallback = ignore_progress,
) -> GcReport:
    """Remove the blobs that no image needs; images may be built and pulled meanwhile, on any machine.

    An image is needed while a name stands for it, and for *keep* after it was last built or found in
    the cache.  What nothing needs loses its cache entries at once, and is removed by the first run
    that finds it unneeded still, *grace* later by the clock of the storage.  What lies in ``staging/``,
    and uploads that were never completed, go after a day.  In memory are about 100 bytes for each blob.

    Args:
        backend: The storage.
        grace: How long garbage stays, seconds: longer than a build or a pull takes.  With 0 it goes
            at once; builds are safe even then, but a client may find that what it pulls has gone.
        keep: How long images without a name stay, seconds.
        dry_run: Only tell what would be done; writes nothing.
        workers: How many objects are read or removed at once.
        on_progress: Follows it.

    Raises:
        InvalidConfig: For negative times, or no workers.
        StorageError: The storage failed, or a name or a manifest cannot be read; then no blob was removed.

    >>> from nixery_core.storage.plugins import open_backend
    >>> collect_garbage(open_backend("memory://garbage")).removed_blobs
    0
    """
    if grace < 0 or keep < 0 or workers < 1:
        raise InvalidConfig(f"gc needs times of at least 0 and a worker, not {grace}, {keep} and {workers}")
    now = time.time() if dry_run else storage_time(backend)
    with ExitStack() as stack:
        sweeper = None
        if not dry_run:
            _remove_dead(backend, now)
            sweeper = stack.enter_context(Sweeper(backend, workers=workers, since=now))
        unfinished = _remove_unfinished(backend, now - UNFINISHED_LIFETIME, dry_run=dry_run)
        report = _Collection(backend, sweeper, now, grace, keep, workers, on_progress).run(unfinished)
    if not dry_run:
        refresh_index(backend)
    return report


def _remove_dead(backend: Backend, now: float) -> None:
    """Remove what publishers, collectors and registries left that died."""
    lifetimes = {**dict.fromkeys((PINS, SWEEPS, CLOCKS), PIN_LIFETIME), LEASES: LEASE_LIFETIME}
    for prefix, lifetime in lifetimes.items():
        _remove_old(backend, prefix, now - lifetime, dry_run=False)


def _remove_unfinished(backend: Backend, moment: float, *, dry_run: bool) -> int:
    """Remove what has been on its way in since before *moment*; return how much that is."""
    count = _remove_old(backend, STAGING, moment, dry_run=dry_run)
    if isinstance(backend, SupportsUploads):
        for upload in old_uploads(backend, moment):
            count += 1
            if not dry_run:
                backend.abort_upload(upload)
    return count


def _remove_old(backend: Backend, prefix: str, moment: float, *, dry_run: bool) -> int:
    """Remove what was written under *prefix* at *moment* or before; return how many objects that are."""
    count = 0
    for info in backend.list(prefix):
        if is_older(info, moment):
            count += 1
            if not dry_run:
                backend.delete(info.key)
    return count


@attrs.define
class _Collection:
    _backend: Backend
    _sweeper: Sweeper | None
    _now: float
    _grace: float
    _keep: float
    _workers: int
    _on_progress: ProgressCallback
    _names: int = 0
    _removed_entries: int = 0
    # expired images: the keys of their cache entries, and their manifests
    _expired: list[tuple[str, Descriptor]] = attrs.field(factory=list)

    def run(self, unfinished: int) -> GcReport:
        needed = self._mark()
        kept, young, garbage = self._list(needed)
        # an image that was just built has no name yet, and one that just lost its name may be pulled still
        self._spare(garbage, find_manifests(self._backend, young, workers=self._workers))
        self._remove_entries(garbage)
        since, due = self._condemn(garbage)
        waiting = [info for key, info in garbage.items() if key not in due]
        self._spare(due, find_manifests(self._backend, waiting, workers=self._workers))
        removed = list(due.values()) if self._sweeper is None else self._sweep(due)
        gone = {info.key for info in removed}
        waiting = [info for key, info in garbage.items() if key not in gone]
        if self._sweeper is not None:
            write_candidates(self._backend, {info.key: since[info.key] for info in waiting})
        total = sum(info.size for info in garbage.values())
        return GcReport(
            dry_run=self._sweeper is None,
            names=self._names,
            kept_blobs=kept[0] - len(garbage),
            kept_bytes=kept[1] - total,
            waiting_blobs=len(waiting),
            waiting_bytes=sum(info.size for info in waiting),
            next_in=max(min(since[info.key] for info in waiting) + self._grace - self._now, 0.0) if waiting else None,
            removed_blobs=len(removed),
            removed_bytes=sum(info.size for info in removed),
            removed_entries=self._removed_entries,
            removed_unfinished=unfinished,
        )

    def _mark(self) -> Marks:
        """Return what is needed.  Pins come first: when one is gone, its name is there."""
        marks = Marks(self._backend, workers=self._workers)
        marks.add(self._pinned())
        marks.add_images(self._cached_images())
        marks.add_images(self._named_images())
        return marks

    def _pinned(self) -> set[Digest]:
        if self._sweeper is not None:
            return self._sweeper.pinned()
        pins = [read_pin(self._backend, key) for key in list_pins(self._backend)]
        return {digest for pin in pins if pin is not None and not pin.done for digest in pin.blobs}

    def _cached_images(self) -> list[Descriptor]:
        images = []
        for info, entry in each(self._cached_image, self._backend.list(MANIFESTS), workers=self._workers):
            if entry is None:
                continue
            if is_older(info, self._now - self._keep):
                self._expired.append((info.key, entry))
            else:
                images.append(entry)
        return images

    def _cached_image(self, info: ObjectInfo) -> tuple[ObjectInfo, Descriptor | None]:
        try:
            return info, CachedImage.from_bytes(self._backend.get(info.key)).manifest
        except (ObjectNotFound, InvalidDocument):
            # a miss for builders, so it keeps nothing
            return info, None

    def _named_images(self) -> list[Descriptor]:
        found = each(self._named_image, self._backend.list(REFS), workers=self._workers)
        images = [image for image in found if image is not None]
        self._names = len(images)
        return images

    def _named_image(self, info: ObjectInfo) -> Descriptor | None:
        try:
            image = Descriptor.from_bytes(self._backend.get(info.key))
        except ObjectNotFound:
            return None
        except InvalidDocument as error:
            raise self._unreadable(info.key, error.message) from error
        if image.media_type not in (MANIFEST, INDEX):
            raise self._unreadable(info.key, f"it stands for {image.media_type}")
        return image

    def _unreadable(self, key: str, why: str) -> StorageError:
        return StorageError(
            f"nobody can tell what {key} needs: {why}",
            key=key,
            hint="run nixery-core fsck --repair first, or remove it; nothing was removed",
        )

    def _list(self, needed: Marks) -> tuple[tuple[int, int], list[ObjectInfo], dict[str, ObjectInfo]]:
        """Return number and bytes of all blobs, those that nothing needs but are young, and the garbage by key."""
        count = size = 0
        young: list[ObjectInfo] = []
        garbage: dict[str, ObjectInfo] = {}
        for info in self._backend.list(BLOBS):
            digest = parse_blob_key(info.key)
            if digest is None:
                continue
            count += 1
            size += info.size
            self._on_progress(KeepingProgress(stage="blobs", objects=count, size=size))
            if digest in needed:
                continue
            # one of unknown age is young when it is first seen here, and then a candidate
            if info.modified is None or is_older(info, self._now - self._grace):
                garbage[info.key] = info
            else:
                young.append(info)
        return (count, size), young, garbage

    def _spare(self, blobs: dict[str, ObjectInfo], manifests: Iterable[FoundManifest]) -> None:
        """Take out of *blobs* what *manifests* need: no manifest stays without its blobs."""
        marks = Marks(self._backend, workers=self._workers)
        marks.add_images(blob for manifest in manifests for blob in manifest.named)
        for key in [key for key in blobs if _digest(key) in marks]:
            del blobs[key]

    def _remove_entries(self, garbage: dict[str, ObjectInfo]) -> None:
        """Remove the cache entries that speak of garbage, so that no build begins to use it."""
        if not garbage:
            return
        keys = [key for key, manifest in self._expired if blob_key(manifest.digest) in garbage]
        entries = each(lambda info: self._layer_of(info, garbage), self._backend.list(LAYERS), workers=self._workers)
        keys.extend(key for key in entries if key is not None)
        self._removed_entries = len(keys)
        if self._sweeper is not None:
            for _ in each(self._backend.delete, keys, workers=self._workers):
                pass

    def _layer_of(self, info: ObjectInfo, garbage: dict[str, ObjectInfo]) -> str | None:
        try:
            layer = BuiltLayer.from_bytes(self._backend.get(info.key))
        except (ObjectNotFound, InvalidDocument):
            return None
        return info.key if blob_key(layer.descriptor.digest) in garbage else None

    def _condemn(self, garbage: dict[str, ObjectInfo]) -> tuple[dict[str, float], dict[str, ObjectInfo]]:
        """Return since when each is garbage, and which of it may go now."""
        # the grace of what is new begins now that no cache entry speaks of it
        moment = self._now if self._sweeper is None or not garbage else storage_time(self._backend)
        before = read_candidates(self._backend) if garbage else {}
        since = {key: min(before.get(key, moment), moment) for key in garbage}
        if self._sweeper is not None:
            # before anything goes: who is stopped here has lost no time
            write_candidates(self._backend, since)
        return since, {key: info for key, info in garbage.items() if since[key] <= moment - self._grace}

    def _sweep(self, due: dict[str, ObjectInfo]) -> list[ObjectInfo]:
        """Remove blobs, indexes and manifests before what they need; return what was removed."""
        documents = find_manifests(self._backend, due.values(), workers=self._workers)
        removed: list[ObjectInfo] = []
        for media_type in (INDEX, MANIFEST):
            level = [found for found in documents if found.media_type == media_type and found.info.key in due]
            self._remove([found.info for found in level], removed)
            gone = {info.key for info in removed}
            for found in level:
                due.pop(found.info.key)
            # in use again: so is what it needs
            self._spare(due, [found for found in level if found.info.key not in gone])
        self._remove(list(due.values()), removed)
        return removed

    def _remove(self, blobs: Sequence[ObjectInfo], removed: list[ObjectInfo]) -> None:
        assert self._sweeper is not None
        for start in range(0, len(blobs), BATCH):
            removed += self._sweeper.remove(blobs[start : start + BATCH])
            size = sum(info.size for info in removed)
            self._on_progress(KeepingProgress(stage="removed", objects=len(removed), size=size))


def _digest(key: str) -> Digest:
    digest = parse_blob_key(key)
    assert digest is not None
    return digest

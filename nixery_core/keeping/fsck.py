"""Looking at every object of a storage: is it what it should be, and is all there that it speaks of?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import groupby

import attrs

from nixery_core.errors import DigestMismatch, InvalidConfig, InvalidDocument, ObjectNotFound
from nixery_core.keeping.clock import is_older, old_uploads, storage_time, was_written_again
from nixery_core.keeping.parallel import each
from nixery_core.keeping.problem import (
    FsckReport,
    KeepingProgress,
    Problem,
    ProblemKind,
    ProgressCallback,
    ignore_progress,
)
from nixery_core.keeping.sweep import BATCH, Sweeper
from nixery_core.layer_writer import BuiltLayer
from nixery_core.manifest_cache import CachedImage
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor
from nixery_core.storage.backend import Backend, ObjectInfo
from nixery_core.storage.blobs import image_blobs, verified
from nixery_core.storage.capabilities import SupportsUploads
from nixery_core.storage.image_index import index_problem, refresh_index, write_index
from nixery_core.storage.keys import (
    CANDIDATES_KEY,
    CLOCKS,
    INDEX_KEY,
    LAYERS,
    LEASES,
    MANIFESTS,
    OCI_LAYOUT_KEY,
    PINS,
    POPULARITY,
    STAGING,
    SWEEPS,
    blob_key,
    layer_cache_key,
    parse_blob_key,
    parse_lease_key,
    parse_ref_key,
)

DEFAULT_GRACE = 24 * 3600.0
"""Seconds for which what lies in ``staging/`` may belong to a build that runs."""
DEFAULT_WORKERS = 8

_DIED = "its writer died"


def fsck(
    backend: Backend,
    *,
    repair: bool = False,
    quick: bool = False,
    grace: float = DEFAULT_GRACE,
    workers: int = DEFAULT_WORKERS,
    on_progress: ProgressCallback = ignore_progress,
) -> FsckReport:
    """Check the storage: digests and sizes of blobs, what names and caches speak of, what is left over.

    Images may be built and pulled meanwhile; what changes under its hands is looked at again before
    it is called a problem.  Blobs are read as streams, several at once; in memory is about 200 bytes for each.

    Args:
        backend: The storage.
        repair: Put right what can be: remove wrong blobs and refs, dangling cache entries and what
            dead processes left, write ``index.json``.  Without it nothing is written.
        quick: Do not read the blobs: their sizes are compared, their content is not.
        grace: Age from which something unfinished counts as left over, seconds.
        workers: How many objects are read at once.
        on_progress: Follows it.

    Raises:
        InvalidConfig: For a negative grace, or no workers.
        StorageError: The storage failed.

    >>> from nixery_core.storage.plugins import open_backend
    >>> fsck(open_backend("memory://fsck")).problems
    ()
    """
    if grace < 0 or workers < 1:
        raise InvalidConfig(f"fsck needs a grace of at least 0 and a worker, not {grace} and {workers}")
    now = storage_time(backend) if repair else time.time()
    check = _Check(backend, _Settings(repair=repair, quick=quick, grace=grace, workers=workers, now=now), on_progress)
    problems = tuple(check.run())
    return FsckReport(
        objects=check.objects, blobs=len(check.sizes), bytes_read=check.bytes_read, problems=check.repaired(problems)
    )


@attrs.frozen(kw_only=True)
class _Settings:
    repair: bool
    quick: bool
    grace: float
    workers: int
    now: float


class _Check:
    def __init__(self, backend: Backend, settings: _Settings, on_progress: ProgressCallback) -> None:
        self._backend = backend
        self._settings = settings
        self._on_progress = on_progress
        self.objects = 0
        self.bytes_read = 0
        # of every blob that is there and right; raw digests, since there may be a million
        self.sizes: dict[bytes, int] = {}
        self._wrong: dict[str, ObjectInfo] = {}
        # manifests whose images are whole; many names stand for one
        self._whole: set[tuple[Digest, int, str]] = set()

    def run(self) -> Iterator[Problem]:
        """Give every problem, one part of the storage after the other; the listing is sorted, so blobs come first."""
        checks = {"blobs": self._blobs, "cache": self._cache, "refs": self._refs}
        for part, infos in groupby(self._backend.list(""), key=lambda info: info.key.partition("/")[0]):
            yield from checks.get(part, self._others)(self._counted(part, infos))
        yield from self._uploads()
        yield from self._index()

    def repaired(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """Repair what can be repaired, if that is wanted, and return the problems with what became of each."""
        if not self._settings.repair:
            return problems
        return _Repair(self._backend, self._settings.workers).run(problems)

    def _counted(self, part: str, infos: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
        for count, info in enumerate(infos, 1):
            self.objects += 1
            yield info
            self._on_progress(KeepingProgress(stage=part, objects=count, size=self.bytes_read))

    def _blobs(self, infos: Iterable[ObjectInfo]) -> Iterator[Problem]:
        for info, found in each(self._blob, infos, workers=self._settings.workers):
            digest = parse_blob_key(info.key)
            if digest is None:
                yield _foreign(info)
            elif isinstance(found, int):
                self.bytes_read += found
                self.sizes[bytes.fromhex(digest.hex)] = info.size
            elif found is not None:
                self._wrong[info.key] = info
                yield Problem(kind=ProblemKind.WRONG_BLOB, key=info.key, detail=found.message)

    def _blob(self, info: ObjectInfo) -> tuple[ObjectInfo, int | DigestMismatch | None]:
        """Return the bytes that were read of a blob that is right, what is wrong with it, or None if it is gone."""
        digest = parse_blob_key(info.key)
        if digest is None or self._settings.quick:
            return info, 0
        try:
            return info, sum(map(len, verified(self._backend, digest)))
        except DigestMismatch as error:
            return info, error
        except ObjectNotFound:
            return info, None

    def _cache(self, infos: Iterable[ObjectInfo]) -> Iterator[Problem]:
        yield from filter(None, each(self._entry, infos, workers=self._settings.workers))

    def _entry(self, info: ObjectInfo) -> Problem | None:
        if not info.key.startswith((LAYERS, MANIFESTS)):
            return _foreign(info)
        try:
            data = self._backend.get(info.key)
            if info.key.startswith(LAYERS):
                layer = BuiltLayer.from_bytes(data)
                if layer_cache_key(layer.layer_key) != info.key:
                    return Problem(
                        kind=ProblemKind.WRONG_ENTRY, key=info.key, detail=f"it is about the layer {layer.layer_key}"
                    )
                lost = None if self._has(layer.descriptor) else str(layer.descriptor.digest)
            else:
                image = CachedImage.from_bytes(data)
                broken = self._image(image.manifest, info.key)
                lost = broken.detail if broken else None
        except ObjectNotFound:
            return None
        except InvalidDocument as error:
            return Problem(kind=ProblemKind.WRONG_ENTRY, key=info.key, detail=error.message)
        if lost is None:
            return None
        return Problem(kind=ProblemKind.DANGLING_ENTRY, key=info.key, detail=f"missing or wrong: {lost}")

    def _refs(self, infos: Iterable[ObjectInfo]) -> Iterator[Problem]:
        yield from filter(None, each(self._ref, infos, workers=self._settings.workers))

    def _ref(self, info: ObjectInfo) -> Problem | None:
        if parse_ref_key(info.key) is None:
            return _foreign(info)
        problem = self._ref_problem(info.key)
        # a name that got a new image, or was deleted, while we looked is no problem
        return problem and self._ref_problem(info.key)

    def _ref_problem(self, key: str) -> Problem | None:
        try:
            manifest = Descriptor.from_bytes(self._backend.get(key))
        except ObjectNotFound:
            return None
        except InvalidDocument as error:
            return Problem(kind=ProblemKind.WRONG_REF, key=key, detail=error.message)
        if manifest.media_type not in (MANIFEST, INDEX):
            return Problem(kind=ProblemKind.WRONG_MANIFEST, key=key, detail=f"it is {manifest.media_type}")
        return self._image(manifest, key)

    def _image(self, manifest: Descriptor, key: str) -> Problem | None:
        """Return what is wrong with an image that the object *key* names."""
        identity = (manifest.digest, manifest.size, manifest.media_type)
        if identity in self._whole:
            return None
        found = self._look(manifest)
        if found is None:
            self._whole.add(identity)
            return None
        return attrs.evolve(found, key=key)

    def _look(self, manifest: Descriptor) -> Problem | None:
        try:
            missing = [str(blob.digest) for blob in image_blobs(self._backend, manifest) if not self._has(blob)]
        except ObjectNotFound as error:
            return Problem(kind=ProblemKind.MISSING_BLOB, key="", detail=error.key.rpartition("/")[2])
        except (InvalidDocument, DigestMismatch) as error:
            return Problem(kind=ProblemKind.WRONG_MANIFEST, key="", detail=f"{manifest.digest}: {error.message}")
        return Problem(kind=ProblemKind.MISSING_BLOB, key="", detail=" ".join(missing)) if missing else None

    def _has(self, blob: Descriptor) -> bool:
        known = self.sizes.get(bytes.fromhex(blob.digest.hex))
        if known is not None:
            return known == blob.size
        return self._written_since(blob.digest, blob.size)

    def _written_since(self, digest: Digest, size: int) -> bool:
        # not in the listing, or wrong when it was read: it counts if it has been written since
        key = blob_key(digest)
        found = self._backend.stat(key)
        if found is None or found.size != size:
            return False
        if key in self._wrong and not was_written_again(self._wrong[key], found):
            return False
        return not isinstance(self._blob(found)[1], DigestMismatch)

    def _others(self, infos: Iterable[ObjectInfo]) -> Iterator[Problem]:
        marks = dict.fromkeys((PINS, SWEEPS, CLOCKS, LEASES), ProblemKind.OLD_MARK)
        kinds = {STAGING: ProblemKind.OLD_STAGING, **marks}
        for info in infos:
            if info.key.startswith(POPULARITY):
                continue
            prefix = next((prefix for prefix in kinds if info.key.startswith(prefix)), None)
            if prefix is None or (prefix == LEASES and parse_lease_key(info.key) is None):
                if info.key not in (INDEX_KEY, OCI_LAYOUT_KEY, CANDIDATES_KEY):
                    yield _foreign(info)
            elif is_older(info, self._settings.now - self._settings.grace):
                yield Problem(kind=kinds[prefix], key=info.key, detail=f"{info.size} bytes; {_DIED}")

    def _uploads(self) -> Iterator[Problem]:
        if not isinstance(self._backend, SupportsUploads):
            return
        for upload in old_uploads(self._backend, self._settings.now - self._settings.grace):
            if self._settings.repair:
                self._backend.abort_upload(upload)
            yield Problem(
                kind=ProblemKind.OLD_UPLOAD,
                key=upload.key,
                detail=f"upload {upload.id}; {_DIED}",
                repaired=self._settings.repair,
            )

    def _index(self) -> Iterator[Problem]:
        detail = index_problem(self._backend)
        if detail:
            yield Problem(kind=ProblemKind.WRONG_INDEX, key=INDEX_KEY, detail=detail)


class _Repair:
    def __init__(self, backend: Backend, workers: int) -> None:
        self._backend = backend
        self._workers = workers

    def run(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        # entries and names first: nothing speaks of a blob that goes
        done = {problem for problem in problems if self._remove(problem)}
        done |= self._remove_blobs([problem for problem in problems if problem.kind is ProblemKind.WRONG_BLOB])
        if any(problem.kind in (ProblemKind.WRONG_INDEX, ProblemKind.WRONG_REF) for problem in problems):
            write_index(self._backend)
            done |= {problem for problem in problems if problem.kind is ProblemKind.WRONG_INDEX}
        else:
            refresh_index(self._backend)
        return tuple(attrs.evolve(problem, repaired=problem.repaired or problem in done) for problem in problems)

    def _remove(self, problem: Problem) -> bool:
        if problem.kind not in _REMOVED:
            return False
        self._backend.delete(problem.key)
        return True

    def _remove_blobs(self, problems: list[Problem]) -> set[Problem]:
        removed: set[Problem] = set()
        if not problems:
            return removed
        with Sweeper(self._backend, workers=self._workers) as sweeper:
            for start in range(0, len(problems), BATCH):
                batch = {problem.key: problem for problem in problems[start : start + BATCH]}
                infos = [info for key in batch if (info := self._still_wrong(key)) is not None]
                removed |= {batch[info.key] for info in sweeper.remove(infos)}
        return removed

    def _still_wrong(self, key: str) -> ObjectInfo | None:
        """Return what is known of a blob that is wrong still; one that was written again meanwhile is right."""
        info = self._backend.stat(key)
        digest = parse_blob_key(key)
        if info is None or digest is None:
            return None
        try:
            for _ in verified(self._backend, digest):
                pass
        except DigestMismatch:
            return info
        except ObjectNotFound:
            return None
        return None


_REMOVED = {
    ProblemKind.WRONG_REF,
    ProblemKind.DANGLING_ENTRY,
    ProblemKind.WRONG_ENTRY,
    ProblemKind.OLD_STAGING,
    ProblemKind.OLD_MARK,
}


def _foreign(info: ObjectInfo) -> Problem:
    return Problem(kind=ProblemKind.FOREIGN_KEY, key=info.key, detail=f"{info.size} bytes; none of ours")

"""Several binary caches as one: who is asked first, and who else where that one does not have a path or fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from nixery_core.errors import BinaryCacheError, InvalidConfig
from nixery_core.model.storepath import StorePath
from nixery_core.stores.binary_cache import DEFAULT_PRIORITY, BinaryCache
from nixery_core.stores.narinfo import NarInfo


@attrs.frozen
class Found:
    """A store path in a cache."""

    cache: BinaryCache
    """Which cache has it."""
    info: NarInfo
    """What the cache says of it."""


def _caches(caches: BinaryCache | BinaryCaches | Iterable[BinaryCache]) -> tuple[BinaryCache, ...]:
    if isinstance(caches, BinaryCaches):
        return caches.caches
    found = (caches,) if isinstance(caches, BinaryCache) else tuple(caches)
    if not found:
        raise InvalidConfig("there is no binary cache to ask", hint="name one: BinaryCache('https://cache.nixos.org')")
    return found


@attrs.frozen
class BinaryCaches:
    """One binary cache or several, asked by priority; pickles as they do.

    A path that the first does not have is asked of the next.  So is one that the first fails to
    tell of, or tells of what nobody vouches for; the error is raised where no other cache has it.

    >>> len(BinaryCaches([BinaryCache("https://cache.nixos.org"), BinaryCache("/srv/cache")]).caches)
    2
    """

    caches: tuple[BinaryCache, ...] = attrs.field(converter=_caches)
    """In any order; of two with the same priority the earlier is asked first."""

    def ordered(self) -> tuple[BinaryCache, ...]:
        """Return the caches, smallest priority first."""
        if len(self.caches) == 1:
            return self.caches
        return tuple(sorted(self.caches, key=_priority))

    def find(self, path: StorePath) -> Found | None:
        """Return where *path* is, or None where no cache has it; raises BinaryCacheError."""
        failed: BinaryCacheError | None = None
        for cache in self.ordered():
            try:
                info = cache.narinfo(path)
            except BinaryCacheError as error:
                failed = failed or error
            else:
                if info is not None:
                    return Found(cache, info)
        if failed is not None:
            raise failed
        return None

    def find_all(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, Found | None]]:
        """Give every path of *paths*, once each, with where it is; those that no cache has come last.

        Raises BinaryCacheError for a path that a cache failed to tell of and no other has.
        """
        waiting = list(dict.fromkeys(paths))
        failed: dict[StorePath, BinaryCacheError] = {}
        for cache in self.ordered() if waiting else ():
            unanswered: list[StorePath] = []
            for path, answer in cache.answers(waiting):
                if isinstance(answer, NarInfo):
                    yield path, Found(cache, answer)
                    continue
                if answer is not None:
                    failed.setdefault(path, answer)
                unanswered.append(path)
            waiting = unanswered
        for path in waiting:
            if path in failed:
                raise failed[path]
            yield path, None

    def same_elsewhere(self, found: Found, tried: Iterable[BinaryCache]) -> Found | None:
        """Return a cache that has the same archive as *found* and is none of *tried*; None where there is none."""
        without = list(tried)
        for cache in self.ordered():
            if cache in without:
                continue
            try:
                info = cache.narinfo(found.info.store_path)
            except BinaryCacheError:
                # what failed already is the error to tell
                continue
            if info is not None and (info.nar_hash, info.nar_size) == (found.info.nar_hash, found.info.nar_size):
                return Found(cache, info)
        return None


def _priority(cache: BinaryCache) -> int:
    if cache.priority is not None:
        return cache.priority
    try:
        return cache.info().priority
    except BinaryCacheError:
        # it fails again when it is asked for a path, and there the others stand in
        return DEFAULT_PRIORITY

"""Closures from binary caches: references followed until there are no new ones."""

from __future__ import annotations

from collections.abc import Iterable

from nixery_core.cancellation import Cancellation
from nixery_core.errors import BinaryCacheError, InvalidClosure, PathsNotFound
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.binary_caches import BinaryCaches

MOST_PATHS = 1 << 18
"""Most paths of a closure; a cache that invents references without end is stopped here."""


def cached_closure(
    caches: BinaryCache | BinaryCaches | Iterable[BinaryCache],
    roots: Iterable[StorePath],
    *,
    cancellation: Cancellation | None = None,
) -> Closure:
    """Return the closure of *roots* as the caches tell of it.

    The paths that those of one round refer to are asked for at once, so it takes as many rounds as
    the longest chain of references has links.

    Raises:
        PathsNotFound: No cache has some of the paths; it lists every one, after all others were found.
        UntrustedPath: Nobody who is trusted vouches for a path.
        BinaryCacheError: A cache cannot be read, or tells of what cannot be.
        Cancelled: Through *cancellation*, which is looked at once a path.
    """
    asked = BinaryCaches(caches)
    token = Cancellation() if cancellation is None else cancellation
    wanted = tuple(roots)
    infos: dict[StorePath, PathInfo] = {}
    missing: set[StorePath] = set()
    known = set(wanted)
    waiting: set[StorePath] = known
    while waiting:
        new: set[StorePath] = set()
        for path, found in asked.find_all(sorted(waiting)):
            token.check()
            if found is None:
                missing.add(path)
                continue
            info = found.info
            infos[path] = PathInfo(path, info.nar_size, info.references, info.nar_hash)
            new.update(info.references)
        waiting = new - known
        known = known | waiting
        if len(known) > MOST_PATHS:
            raise BinaryCacheError(f"the closure has more than {MOST_PATHS} paths", hint="the cache is hostile")
    if missing:
        raise _not_found(missing, infos, asked)
    try:
        return Closure(infos.values(), wanted)
    except InvalidClosure as error:
        raise BinaryCacheError(error.message, hint="no store can hold such paths: the cache is damaged") from None


def _not_found(missing: set[StorePath], infos: dict[StorePath, PathInfo], caches: BinaryCaches) -> PathsNotFound:
    by: dict[StorePath, StorePath] = {}
    for path in sorted(infos):
        for reference in infos[path].references:
            if reference in missing:
                by.setdefault(reference, path)
    where = ", ".join(cache.where("").rstrip("/") for cache in caches.caches)
    count = "a store path is" if len(missing) == 1 else f"{len(missing)} store paths are"
    return PathsNotFound(
        f"{count} in none of the binary caches ({where})",
        hint="name a cache that has them, or build them and copy them to one: nix copy --to",
        missing={str(path): str(by[path]) if path in by else "" for path in sorted(missing)},
    )

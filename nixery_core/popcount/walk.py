"""Closures of many store paths, as a binary cache tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import BinaryCacheError, InvalidConfig, NarInfosFailed, PathsNotFound
from nixery_core.model.storepath import StorePath
from nixery_core.popcount.counting import PathFacts
from nixery_core.stores.narinfo import NarInfo

MOST_FAILURES = 100
"""Narinfos that cannot be read, after which the walk ends: the cache is out of order then."""


class NarInfoSource(Protocol):
    """What a walk asks: a :class:`~nixery_core.stores.binary_cache.BinaryCache`, or anything with these two methods."""

    def narinfo(self, path: StorePath) -> NarInfo | None:
        """Return what is known of *path*, or None where nothing is; raises BinaryCacheError."""
        ...

    def narinfos(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, NarInfo | None]]:
        """Give each of *paths* with what is known of it, in any order; the first BinaryCacheError ends it."""
        ...


@attrs.frozen(kw_only=True)
class WalkProgress:
    """How far a walk is."""

    done: int
    """Store paths that were looked up, those of an earlier walk among them."""
    found: int
    """Store paths that are known to belong to the closures; grows while the walk goes on."""
    missing: int
    """Store paths that the cache does not have."""
    failed: int
    """Store paths that the cache could not tell of."""


@attrs.frozen(kw_only=True)
class Walk:
    """What a walk found."""

    facts: Mapping[StorePath, PathFacts]
    """What is known of each store path of the closures."""
    missing: Mapping[StorePath, StorePath | None]
    """The store paths that the cache does not have, each with one that refers to it; None for a root."""


def walk_closures(
    roots: Iterable[StorePath],
    source: NarInfoSource,
    *,
    known: Mapping[StorePath, PathFacts] | None = None,
    keep: Callable[[PathFacts], None] | None = None,
    allow_missing: bool = False,
    connections: int = 32,
    on_progress: Callable[[WalkProgress], None] | None = None,
    cancellation: Cancellation | None = None,
) -> Walk:
    """Look up *roots* and all that they refer to, each store path once.

    Args:
        roots: Where the closures begin.
        source: What is asked.
        known: What an earlier walk found; it is not asked for again.
        keep: Gets what is found of each store path at once, so that a later walk knows it.
        allow_missing: Whether paths that the cache does not have are left out; else they are an error.
        connections: Most questions at once where *source* does not decide that.
        on_progress: Called for each store path, in this thread.
        cancellation: Looked at for each store path.

    Raises:
        PathsNotFound: The cache lacks some store paths: all of them, after everything else was looked up.
        NarInfosFailed: The cache cannot tell of some store paths: all of them, or the first hundred.
        BinaryCacheError: The cache cannot be read at all.
        Cancelled: Through *cancellation*.
    """
    if connections < 1:
        raise InvalidConfig(f"a walk needs at least one connection, not {connections}")
    token = Cancellation() if cancellation is None else cancellation
    known = {} if known is None else known
    facts: dict[StorePath, PathFacts] = {}
    missing: list[StorePath] = []
    failed: dict[StorePath, BinaryCacheError] = {}
    # every path that was seen, with the one that referred to it first
    seen: dict[StorePath, StorePath | None] = dict.fromkeys(roots)
    wave = list(seen)
    while wave:
        following: list[StorePath] = []
        for path, answer in _answers(wave, known, source, connections):
            token.check()
            if answer is None:
                missing.append(path)
            elif isinstance(answer, BinaryCacheError):
                failed[path] = answer
                if len(failed) >= MOST_FAILURES:
                    raise _failure(failed, told=len(facts))
            else:
                facts[path] = answer
                if keep is not None and path not in known:
                    keep(answer)
                for reference in answer.references:
                    if reference not in seen:
                        seen[reference] = path
                        following.append(reference)
            if on_progress is not None:
                done = len(facts) + len(missing) + len(failed)
                on_progress(WalkProgress(done=done, found=len(seen), missing=len(missing), failed=len(failed)))
        wave = following
    if failed:
        raise _failure(failed, told=len(facts))
    missing.sort(key=str)
    if missing and not allow_missing:
        raise PathsNotFound(
            f"the binary cache does not have {len(missing)} of {len(seen)} store paths",
            hint="name a cache that has them, or leave them out with --allow-missing",
            missing={str(path): str(seen[path] or "") for path in missing},
        )
    return Walk(facts=facts, missing={path: seen[path] for path in missing})


def _answers(
    paths: Sequence[StorePath], known: Mapping[StorePath, PathFacts], source: NarInfoSource, connections: int
) -> Iterator[tuple[StorePath, PathFacts | BinaryCacheError | None]]:
    """Give each of *paths* with what is known of it, None where the cache has none, or why it cannot tell."""
    unknown: dict[StorePath, None] = {}
    for path in paths:
        if path in known:
            yield path, known[path]
        else:
            unknown[path] = None
    if not unknown:
        return
    try:
        for path, info in source.narinfos(list(unknown)):
            del unknown[path]
            yield path, _facts(info)
    except BinaryCacheError:
        # that was the end of all answers, and does not say whose it was: asked alone, each has its own
        yield from _one_by_one(list(unknown), source, connections)


def _one_by_one(
    paths: Sequence[StorePath], source: NarInfoSource, connections: int
) -> Iterator[tuple[StorePath, PathFacts | BinaryCacheError | None]]:
    def ask(path: StorePath) -> PathFacts | BinaryCacheError | None:
        try:
            return _facts(source.narinfo(path))
        except BinaryCacheError as error:
            return error

    pool = ThreadPoolExecutor(connections, "nixery-core-popcount")
    try:
        for start in range(0, len(paths), MOST_FAILURES):
            some = paths[start : start + MOST_FAILURES]
            yield from zip(some, pool.map(ask, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _facts(info: NarInfo | None) -> PathFacts | None:
    return None if info is None else PathFacts(info.store_path, info.references, info.deriver)


def _failure(failed: Mapping[StorePath, BinaryCacheError], *, told: int) -> BinaryCacheError:
    first = next(iter(failed.values()))
    if not told:
        return first
    return NarInfosFailed(
        f"the binary cache cannot tell of {len(failed)} store paths, but told of {told}",
        hint="run it again: what was found is kept in the state file",
        reasons={str(path): error.message for path, error in sorted(failed.items(), key=lambda item: str(item[0]))},
    )

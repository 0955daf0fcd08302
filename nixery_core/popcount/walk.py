"""Closures of many store paths, as a binary cache tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import BinaryCacheError, InvalidConfig, NarInfosFailed, PathsNotFound
from nixery_core.model.storepath import StorePath
from nixery_core.popcount.counting import PathFacts
from nixery_core.stores._iterators import closing
from nixery_core.stores.narinfo import NarInfo

MOST_FAILURES = 100
"""Narinfos that cannot be read, after which the walk ends: the cache is out of order then."""
_PART = 1024


class NarInfoSource(Protocol):
    """What a walk asks: a :class:`~nixery_core.stores.binary_cache.BinaryCache`, or anything with this method."""

    def answers(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, NarInfo | BinaryCacheError | None]]:
        """Give each of *paths* in any order, with its narinfo, None where there is none, or why it cannot be told."""
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
    sources: Sequence[NarInfoSource],
    *,
    known: Mapping[StorePath, PathFacts] | None = None,
    keep: Callable[[PathFacts], None] | None = None,
    allow_missing: bool = False,
    on_progress: Callable[[WalkProgress], None] | None = None,
    cancellation: Cancellation | None = None,
) -> Walk:
    """Look up *roots* and all that they refer to, each store path once.

    Args:
        roots: Where the closures begin.
        sources: What is asked: the first, and the next for what that one does not have or cannot tell.
        known: What an earlier walk found; it is not asked for again.
        keep: Gets what is found of each store path at once, so that a later walk knows it.
        allow_missing: Whether paths that the cache does not have are left out; else they are an error.
        on_progress: Called for each store path, in this thread.
        cancellation: Looked at for each store path.

    Raises:
        PathsNotFound: No source has some store paths: all of them, after everything else was looked up.
        NarInfosFailed: No source can tell of some store paths: all of them, or the first hundred.
        BinaryCacheError: The sources cannot be read at all.
        Cancelled: Through *cancellation*.
    """
    if not sources:
        raise InvalidConfig("there is nobody to ask", hint="name a binary cache")
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
        for path, answer in _answers(wave, known, sources):
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
            f"no binary cache has {len(missing)} of {len(seen)} store paths",
            hint="name a cache that has them, or leave them out with --allow-missing",
            missing={str(path): str(seen[path] or "") for path in missing},
        )
    return Walk(facts=facts, missing={path: seen[path] for path in missing})


def _answers(
    paths: Sequence[StorePath], known: Mapping[StorePath, PathFacts], sources: Sequence[NarInfoSource]
) -> Iterator[tuple[StorePath, PathFacts | BinaryCacheError | None]]:
    """Give each of *paths* with what is known of it, None where nobody has it, or why nobody can tell."""
    unknown: list[StorePath] = []
    for path in paths:
        if path in known:
            yield path, known[path]
        else:
            unknown.append(path)
    if len(sources) == 1:
        yield from _ask(sources[0], unknown)
        return
    # a part after the other: if all fail, that is seen before every path was asked of all
    for start in range(0, len(unknown), _PART):
        waiting, failed = unknown[start : start + _PART], dict[StorePath, BinaryCacheError]()
        for source in sources:
            rest: list[StorePath] = []
            for path, answer in _ask(source, waiting):
                if isinstance(answer, PathFacts):
                    yield path, answer
                    continue
                if answer is not None:
                    failed.setdefault(path, answer)
                rest.append(path)
            waiting = rest
        yield from ((path, failed.get(path)) for path in waiting)


def _ask(
    source: NarInfoSource, paths: Sequence[StorePath]
) -> Iterator[tuple[StorePath, PathFacts | BinaryCacheError | None]]:
    if paths:
        # its threads end with the walk, whatever ends that
        with closing(source.answers(paths)) as answers:
            for path, answer in answers:
                yield path, _facts(answer) if isinstance(answer, NarInfo) else answer


def _facts(info: NarInfo) -> PathFacts:
    return PathFacts(info.store_path, info.references, info.deriver)


def _failure(failed: Mapping[StorePath, BinaryCacheError], *, told: int) -> BinaryCacheError:
    first = next(iter(failed.values()))
    if not told:
        return first
    return NarInfosFailed(
        f"the binary cache cannot tell of {len(failed)} store paths, but told of {told}",
        hint="run it again: what was found is kept in the state file",
        reasons={str(path): error.message for path, error in sorted(failed.items(), key=lambda item: str(item[0]))},
    )

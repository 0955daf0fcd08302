"""A realiser whose packages live in memory, for tests of builders without Nix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import PackageError, PackageProblem, ProblemKind, nearest
from nixery_core.events import EventCallback, PackageSkipped, ignore_events
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.package import DEFAULT_PRIORITY, PackageOutput, ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.stores.realiser import Realisation
from nixery_core.testing.memory_store import MemoryStore, Tree


@attrs.frozen(kw_only=True)
class MemoryPackage:
    """A package of one output."""

    path: StorePath
    tree: Tree
    """Its content."""
    references: tuple[StorePath, ...] = ()
    """The store paths that it refers to; they are outputs of other packages of the set."""
    priority: int = DEFAULT_PRIORITY


@attrs.frozen
class MemoryRealiser:
    """Looks up names in a mapping and has every store path at hand; pickles like the real ones.

    >>> from nixery_core.model.platform import AMD64
    >>> hello = StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-hello")
    >>> realiser = MemoryRealiser({"hello": MemoryPackage(path=hello, tree={"bin": {"hello": b"#!"}})})
    >>> pin = Pin(kind="memory", url="memory", revision="1", fetch={})
    >>> [package.attribute for package in realiser.evaluate(pin, ["hello"], [], AMD64)]
    ['hello']
    """

    packages: Mapping[str, MemoryPackage]

    @property
    def id(self) -> str:
        """Names the rules; they never change."""
        return "memory 1"

    def evaluate(
        self,
        pin: Pin,  # noqa: ARG002 (there is one package set)
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,  # noqa: ARG002 (its packages are for every platform)
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[ResolvedPackage, ...]:
        """Return the packages of the set; raises PackageError for names that it does not have."""
        (cancellation or Cancellation()).check()
        missing = [name for name in packages if name not in self.packages]
        if missing:
            problems = tuple(
                PackageProblem(name, ProblemKind.NOT_FOUND, candidates=nearest(name, tuple(self.packages)))
                for name in missing
            )
            raise PackageError("; ".join(problem.describe() for problem in problems), problems=problems)
        for name in optional:
            if name not in self.packages:
                on_event(PackageSkipped(name=name, reason="not found"))
        found = sorted({*packages, *(name for name in optional if name in self.packages)})
        return tuple(self._resolved(name) for name in found)

    @contextmanager
    def realise(
        self,
        packages: Sequence[ResolvedPackage],
        *,
        on_event: EventCallback = ignore_events,  # noqa: ARG002 (nothing happens)
        cancellation: Cancellation | None = None,
    ) -> Iterator[Realisation]:
        """Give the closure of *packages*."""
        (cancellation or Cancellation()).check()
        by_path = {package.path: package for package in self.packages.values()}
        roots = [output.path for package in packages for output in package.outputs]
        reached: set[StorePath] = set()
        waiting = list(roots)
        while waiting:
            path = waiting.pop()
            if path not in reached:
                reached.add(path)
                waiting.extend(by_path[path].references)
        reader = MemoryStore({path: by_path[path].tree for path in reached})
        infos = [PathInfo(path, _size(reader, path), by_path[path].references) for path in reached]
        yield Realisation(closure=Closure(infos, roots), reader=reader)

    def _resolved(self, name: str) -> ResolvedPackage:
        package = self.packages[name]
        return ResolvedPackage(
            name=name,
            attribute=name,
            derivation=None,
            outputs=(PackageOutput(name="out", path=package.path),),
            priority=package.priority,
        )


def _size(reader: MemoryStore, path: StorePath) -> int:
    # near the NAR size; what tests need is that larger trees are larger
    return sum(112 + entry.size for entry in reader.listing(path))

"""Names of packages that begin as somebody types."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import attrs

from nixery_core._remembered import Remembered
from nixery_core.index.package_index import PackageIndex
from nixery_core.sources import DEFAULT_TAG

MOST = 20
"""Most names in one answer."""


class PackageNames(Protocol):
    """Knows names of packages; any object with this method will do."""

    def complete(self, typed: str) -> Sequence[str]:
        """Return the best names for what was *typed*, the best first; may wait; raises NixeryError."""
        ...


@attrs.frozen(eq=False)
class SortedNames:
    """Names in memory.

    >>> SortedNames.of(["git", "gitFull", "gita", "legit", "python3Packages.gitpython"]).complete("git")
    ['git', 'gita', 'gitFull', 'legit', 'python3Packages.gitpython']
    """

    _folded: Sequence[str]
    _names: Sequence[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> SortedNames:
        """Sort *names*."""
        pairs = sorted((name.lower(), name) for name in set(names))
        return cls([folded for folded, _ in pairs], [name for _, name in pairs])

    def complete(self, typed: str) -> list[str]:
        """Return names that begin with what was typed, the shortest first, then those that hold it."""
        wanted = typed.strip().lower()
        if not wanted:
            return []
        first = bisect_left(self._folded, wanted)
        last = bisect_left(self._folded, wanted + "\U0010ffff")
        beginning = sorted(self._names[first:last], key=lambda name: (len(name), name.lower()))[:MOST]
        if len(beginning) == MOST or len(wanted) < 3:
            return beginning
        holding = [
            name
            for folded, name in zip(self._folded, self._names, strict=True)
            if wanted in folded and not folded.startswith(wanted)
        ]
        return (beginning + sorted(holding, key=lambda name: (len(name), name.lower())))[:MOST]


@runtime_checkable
class ListsNames(Protocol):
    """A snapshot of an index that knows all its names."""

    @property
    def revision(self) -> str | None:
        """The immutable revision, or None where the content can change under our hands."""
        ...

    @property
    def names(self) -> Iterable[str]:
        """The attribute paths of all packages."""
        ...


class IndexNames:
    """The names of a package index, read when they are first asked for, and again when they are old.

    Args:
        index: Where the names are; one that cannot list them, such as Hydra's, completes nothing.
    """

    def __init__(self, index: PackageIndex) -> None:
        self._index = index
        self._sorted = Remembered()

    def complete(self, typed: str) -> Sequence[str]:
        """Return names as :class:`SortedNames` does; raises SourceError."""
        snapshot = self._index.snapshot(DEFAULT_TAG)
        if not isinstance(snapshot, ListsNames):
            return []
        names = self._sorted.get(snapshot.revision, float("inf"), lambda: SortedNames.of(snapshot.names))
        return names.complete(typed)

"""Names of packages that begin as somebody types."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from nixery_core._remembered import Remembered
from nixery_core.index.index_file import IndexFile
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


class IndexNames:
    """The names of a package index, read when they are first asked for and again when they are old.

    Args:
        index: Where the names are.
    """

    def __init__(self, index: IndexFile) -> None:
        self._index = index
        self._sorted = Remembered()

    def complete(self, typed: str) -> Sequence[str]:
        """Return names as :class:`SortedNames` does; raises SourceError."""
        document = self._index.snapshot(DEFAULT_TAG)
        names = self._sorted.get(document.revision, float("inf"), lambda: SortedNames.of(document.packages))
        return names.complete(typed)

"""In how many closures a package is, for a hundred thousand packages at once."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

import attrs

from nixery_core.errors import InvalidClosure
from nixery_core.layering.popularity import Popularity
from nixery_core.model.storepath import StorePath, name_without_version

BLOCK = 4096
"""Root packages that are counted in one pass; a store path takes one bit for each of them while it is counted."""


@attrs.frozen
class PathFacts:
    """What counting needs to know of one store path."""

    path: StorePath
    references: tuple[StorePath, ...]
    """The store paths that it refers to; the path itself may be among them."""
    deriver: StorePath | None = None
    """The derivation that made it; None where nobody knows."""

    @property
    def package(self) -> str:
        """The name without version that the path counts under.

        Outputs of one derivation are one package, also where the name has no version that would
        tell where the name of the output begins.

        >>> hash = "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw"
        >>> PathFacts(StorePath(hash, "tool-dev"), (), StorePath(hash, "tool.drv")).package
        'tool'
        """
        if self.deriver is not None:
            made_by = self.deriver.name.removesuffix(".drv")
            if self.path.name == made_by or self.path.name.startswith(f"{made_by}-"):
                return name_without_version(made_by)
        return name_without_version(self.path.name)


@attrs.frozen(kw_only=True)
class ClosureCounts:
    """The result of counting."""

    popularity: Popularity
    """For each package name, without version, the number of root packages whose closure holds it."""
    roots: int
    """Root packages; the outputs of one derivation are one."""
    paths: int
    """Store paths in all the closures."""


def count_closures(facts: Mapping[StorePath, PathFacts], roots: Iterable[StorePath]) -> ClosureCounts:
    """Count in the closures of *roots*, each root package once.

    P(x) is the number of root packages whose closure holds a package called x, of whatever version.
    A package whose outputs have names of their own, because it has no version, is found under each.
    What is referred to but is not in *facts* counts under its name, as if it referred to nothing; a
    root that is not in *facts* is left out, for nothing is known of its closure.

    Time is proportional to references times roots, divided by BLOCK; memory to store paths times BLOCK bits.

    Raises:
        InvalidClosure: If references form a cycle.

    >>> a, b, c = (StorePath(letter * 32, f"{letter}-1.0") for letter in "abc")
    >>> graph = {a: PathFacts(a, (b,)), b: PathFacts(b, (c,)), c: PathFacts(c, ())}
    >>> dict(count_closures(graph, [a, b]).popularity.counts)
    {'a': 1, 'b': 2, 'c': 2}
    """
    graph = _Graph.of(facts)
    packages: dict[StorePath, list[int]] = {}
    for root in dict.fromkeys(roots):
        if root in facts:
            packages.setdefault(facts[root].deriver or root, []).append(graph.number[root])
    counts = [0] * len(graph.packages)
    reached = bytearray(len(graph.order))
    groups = list(packages.values())
    for start in range(0, len(groups), BLOCK):
        for package, holders in graph.closures(groups[start : start + BLOCK], reached).items():
            counts[package] += holders.bit_count()
    by_name = {name: counts[package] for name, package in graph.packages.items() if counts[package]}
    for path, n in graph.number.items():
        # an output of an unusual name, or of a package without version: alone it looks like another package
        if reached[n] and (name := name_without_version(path.name)) != graph.names[n]:
            by_name[name] = max(by_name.get(name, 0), counts[graph.package_of[n]])
    return ClosureCounts(popularity=Popularity(dict(sorted(by_name.items()))), roots=len(groups), paths=sum(reached))


@attrs.frozen(eq=False)
class _Graph:
    """Store paths as numbers."""

    number: Mapping[StorePath, int]
    order: Sequence[int]
    """Every store path before all that it refers to."""
    references: Sequence[Sequence[int]]
    packages: Mapping[str, int]
    """The number of each package by its name."""
    package_of: Sequence[int]
    """The package of each store path."""
    names: Sequence[str]
    """The name of the package of each store path."""

    @classmethod
    def of(cls, facts: Mapping[StorePath, PathFacts]) -> _Graph:
        number: dict[StorePath, int] = {}
        for fact in facts.values():
            number.setdefault(fact.path, len(number))
        for fact in facts.values():
            for reference in fact.references:
                number.setdefault(reference, len(number))
        references: list[list[int]] = []
        packages: dict[str, int] = {}
        package_of: list[int] = []
        names: list[str] = []
        for path, own in number.items():
            fact = facts.get(path) or PathFacts(path, ())
            references.append([n for reference in fact.references if (n := number[reference]) != own])
            names.append(fact.package)
            package_of.append(packages.setdefault(names[-1], len(packages)))
        return cls(number, _referrers_first(references, number), references, packages, package_of, names)

    def closures(self, roots: Sequence[Sequence[int]], reached: bytearray) -> dict[int, int]:
        """Return, for each package in the closures of *roots*, which of them hold it: bit n for the n-th."""
        holders = [0] * len(self.order)
        for bit, paths in enumerate(roots):
            for path in paths:
                holders[path] |= 1 << bit
        found: dict[int, int] = {}
        references, package_of = self.references, self.package_of
        for path in self.order:
            bits = holders[path]
            if bits:
                holders[path] = 0  # the memory is free again
                reached[path] = 1
                for reference in references[path]:
                    holders[reference] |= bits
                package = package_of[path]
                found[package] = found.get(package, 0) | bits
        return found


def _referrers_first(references: Sequence[Sequence[int]], number: Mapping[StorePath, int]) -> list[int]:
    sorter = graphlib.TopologicalSorter(dict(enumerate(references)))
    try:
        order = list(sorter.static_order())
    except graphlib.CycleError as error:
        paths = list(number)
        cycle = ", ".join(str(paths[n]) for n in error.args[1])
        raise InvalidClosure(f"store paths refer to each other in a cycle: {cycle}") from None
    order.reverse()
    return order

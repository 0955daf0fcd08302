"""A closure as numbers: what the strategies compute on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import attrs

from nixery_core.layering.layerer import LayerPlan
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure
from nixery_core.model.storepath import StorePath


@attrs.frozen(eq=False)
class Graph:
    """The store paths of a closure, numbered so that every path comes after all that it refers to.

    The numbers depend on the hashes of the paths, so they must not decide what goes together:
    ties are broken by ``rank``, which looks at the label first, and that survives an update.
    """

    paths: Sequence[StorePath]
    sizes: Sequence[int]
    """NAR sizes, bytes."""
    labels: Sequence[str]
    """Package names as the popularity data knows them."""
    counts: Sequence[int]
    """How widely each package is used; 0 where nothing is known."""
    references: Sequence[Sequence[int]]
    """Without the path itself."""
    referrers: Sequence[Sequence[int]]
    roots: Sequence[int]

    @classmethod
    def of(cls, closure: Closure, popularity: Popularity) -> Graph:
        """Number the paths of *closure*."""
        paths = closure.topological()
        number = {path: i for i, path in enumerate(paths)}
        infos = [closure[path] for path in paths]
        references: list[list[int]] = []
        referrers: list[list[int]] = [[] for _ in paths]
        for i, info in enumerate(infos):
            numbers = [number[reference] for reference in info.references]
            references.append([j for j in numbers if j != i])
            for j in references[-1]:
                referrers[j].append(i)
        labels = [popularity.name_of(path) for path in paths]
        return cls(
            paths=paths,
            sizes=[info.nar_size for info in infos],
            labels=labels,
            counts=[popularity.counts.get(label, 0) for label in labels],
            references=references,
            referrers=referrers,
            roots=[number[root] for root in closure.roots],
        )

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def closures(self) -> Sequence[int]:
        """For each path the set of paths that it needs, itself among them, as bits of an integer."""
        masks: list[int] = []
        for i, references in enumerate(self.references):
            mask = 1 << i
            for j in references:
                mask |= masks[j]
            masks.append(mask)
        return masks

    @functools.cached_property
    def rank(self) -> Sequence[int]:
        """For each path its place in the order of labels, and of paths where these are equal."""
        ranks = [0] * len(self)
        # the texts are compared: many times faster than the order of store paths, and the same
        order = sorted(range(len(self)), key=lambda i: (self.labels[i], self.paths[i].hash, self.paths[i].name))
        for rank, i in enumerate(order):
            ranks[i] = rank
        return ranks

    @functools.cached_property
    def by_use(self) -> Sequence[int]:
        """The paths, most widely used last."""
        return sorted(range(len(self)), key=lambda i: (self.counts[i], self.rank[i]))

    @functools.cached_property
    def dependents(self) -> Sequence[int]:
        """For each path the set of paths that need it, itself among them: bit n is path ``by_use[n]``.

        So the highest bit of a set is its most widely used path.
        """
        masks = [0] * len(self)
        for n, i in enumerate(self.by_use):
            masks[i] = 1 << n
        for i in reversed(range(len(self))):
            for j in self.references[i]:
                masks[j] |= masks[i]
        return masks

    def size(self, members: Iterable[int]) -> int:
        """Return the sum of the NAR sizes of *members*, bytes."""
        return sum(self.sizes[i] for i in members)

    def plan(self, members: Iterable[int], reason: str) -> LayerPlan:
        """Return the layer of *members*."""
        numbers = list(members)
        return LayerPlan([self.paths[i] for i in numbers], self.size(numbers), reason)

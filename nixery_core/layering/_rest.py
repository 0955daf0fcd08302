"""Puts what is beyond the budget into few layers: the part of a plan that is made for one image."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from nixery_core.layering._graph import Graph

MOST_GROUPS = 192
"""Groups that are compared pair by pair; more take time and hardly save a byte."""


def gather(graph: Graph, blocks: Sequence[Sequence[int]], limit: int, *, update_rate: float) -> list[list[int]]:
    """Return the numbers of *blocks* in at most *limit* groups that waste little.

    A layer is wasted where an image has some of its paths without the others, and where an update of one
    thing that it depends on makes all of it new.  The two groups that waste least together are joined first.
    """
    numbers = split_by_dependencies(graph, blocks, max(limit, MOST_GROUPS))
    groups = [_Group.of(graph, [i for n in group for i in blocks[n]], update_rate) for group in numbers]
    alive = dict(enumerate(groups))
    heap = [(group.waste_of(groups[n]), n, m) for m, group in alive.items() for n in range(m)]
    heapq.heapify(heap)
    while len(alive) > limit:
        _, m, n = heapq.heappop(heap)
        if m in alive and n in alive:
            joined = alive.pop(m).joined(alive.pop(n))
            for other, group in alive.items():
                heapq.heappush(heap, (joined.waste_of(group), other, len(numbers)))
            alive[len(numbers)] = joined
            numbers.append(numbers[m] + numbers[n])
    return [numbers[n] for n in alive]


class _Group:
    """Store paths in one layer, and the bytes of it that will be pulled in vain."""

    __slots__ = ("closure", "dependents", "graph", "needed", "rate", "size", "spread", "waste")

    def __init__(
        self, graph: Graph, rate: float, size: int, spread: float, needed: int, closure: int, dependents: int
    ) -> None:
        self.graph = graph
        self.rate = rate
        self.size = size
        self.spread = spread
        """Sum of bytes by use: times the use of a dependent, the bytes that are had with that dependent."""
        self.needed = needed
        """Sum of bytes times the number of paths that they themselves depend on."""
        self.closure = closure
        self.dependents = dependents
        """The paths that depend on all members, as bits by use."""
        self.waste = self._waste(size, spread, needed, closure, dependents)

    @classmethod
    def of(cls, graph: Graph, members: Sequence[int], rate: float) -> _Group:
        closure, dependents = 0, -1
        for i in members:
            closure |= graph.closures[i]
            dependents &= graph.dependents[i]
        return cls(
            graph,
            rate,
            graph.size(members),
            sum(graph.sizes[i] / max(1, graph.counts[i]) for i in members),
            sum(graph.sizes[i] * graph.closures[i].bit_count() for i in members),
            closure,
            dependents,
        )

    def joined(self, other: _Group) -> _Group:
        return _Group(
            self.graph,
            self.rate,
            self.size + other.size,
            self.spread + other.spread,
            self.needed + other.needed,
            self.closure | other.closure,
            self.dependents & other.dependents,
        )

    def waste_of(self, other: _Group) -> float:
        """Return how many bytes are wasted more if the two are one layer."""
        waste = self._waste(
            self.size + other.size,
            self.spread + other.spread,
            self.needed + other.needed,
            self.closure | other.closure,
            self.dependents & other.dependents,
        )
        return waste - self.waste - other.waste

    def _waste(self, size: int, spread: float, needed: int, closure: int, dependents: int) -> float:
        # of all that depends on the whole group, the most widely used has the lowest bit
        together = (
            self.graph.counts[self.graph.by_use[(dependents & -dependents).bit_length() - 1]] if dependents else 0
        )
        missed = size - together * spread
        return (missed if missed > 0 else 0.0) + self.rate * (size * closure.bit_count() - needed)


def split_by_dependencies(graph: Graph, blocks: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Return the numbers of *blocks* in at most *limit* groups.

    An update of a package renames all that depends on it, so blocks that depend on the same paths
    change together.  The paths that part the blocks most evenly are asked first.
    """
    # for each path the blocks that need it, as bits
    needed_by = [0] * len(graph)
    for number, block in enumerate(blocks):
        for i in block:
            needed_by[i] |= 1 << number
    for i in reversed(range(len(graph))):
        for j in graph.references[i]:
            needed_by[j] |= needed_by[i]
    holders = [mask.bit_count() for mask in needed_by]
    half = len(blocks)
    candidates = sorted(
        (i for i in range(len(graph)) if 0 < holders[i] < half),
        key=lambda i: (abs(2 * holders[i] - half), graph.rank[i]),
    )
    groups = [(1 << len(blocks)) - 1] if blocks else []
    for candidate in candidates:
        if len(groups) >= limit:
            break
        mask = needed_by[candidate]
        parted = [part for group in groups for part in (group & mask, group & ~mask) if part]
        if len(parted) <= limit:
            groups = parted
    return [_bits(group) for group in groups]


def _bits(mask: int) -> list[int]:
    numbers = []
    while mask:
        low = mask & -mask
        numbers.append(low.bit_length() - 1)
        mask ^= low
    return numbers

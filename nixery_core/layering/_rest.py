"""Puts what is beyond the budget into few layers: the part of a plan that is made for one image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nixery_core.layering._graph import Graph

MOST_GROUPS = 160
"""Groups that are compared pair by pair; more take time and hardly save a byte."""
MOST_WORK = 200_000
"""Groups times store paths: in a larger closure each comparison takes longer."""


def gather(graph: Graph, blocks: Sequence[Sequence[int]], limit: int, *, update_rate: float) -> list[list[int]]:
    """Return the numbers of *blocks* in at most *limit* groups that waste little.

    A layer is wasted where an image has some of its paths without the others, and where an update of one
    thing that it depends on makes all of it new.  The two groups that waste least together are joined first.
    """
    most = min(MOST_GROUPS, MOST_WORK // max(1, len(graph)))
    numbers = split_by_dependencies(graph, blocks, max(limit, most))
    use = [0, *(graph.counts[i] for i in graph.by_use)]
    groups = [_Group.of(graph, [i for n in group for i in blocks[n]], use, update_rate) for group in numbers]
    alive: dict[int, _Group] = {}
    # for each group the one before it that it wastes least with, and how much
    nearest: dict[int, tuple[float, int]] = {}
    for n, group in enumerate(groups):
        nearest[n] = _nearest(group, alive)
        alive[n] = group
    while len(alive) > limit:
        (_, m), n = min((found, n) for n, found in nearest.items())
        joined = alive.pop(m).joined(alive.pop(n))
        del nearest[m], nearest[n]
        for other, (_, partner) in nearest.items():
            if partner in (m, n):
                before = {number: group for number, group in alive.items() if number < other}
                nearest[other] = _nearest(alive[other], before)
        nearest[len(numbers)] = _nearest(joined, alive)
        alive[len(numbers)] = joined
        numbers.append(numbers[m] + numbers[n])
    return [numbers[n] for n in alive]


def _nearest(group: _Group, others: Mapping[int, _Group]) -> tuple[float, int]:
    return min(((group.waste_of(other), number) for number, other in others.items()), default=(math.inf, -1))


class _Group:
    """Store paths in one layer, and the bytes of it that will be pulled in vain."""

    __slots__ = ("closure", "dependents", "needed", "rate", "size", "spread", "use", "waste")

    def __init__(
        self, use: Sequence[int], rate: float, size: int, spread: float, needed: int, closure: int, dependents: int
    ) -> None:
        self.use = use
        """How widely a path is used, by the length of a set whose highest bit it is; 0 for the empty set."""
        self.rate = rate
        self.size = size
        self.spread = spread
        """Sum of bytes by use: times the use of a dependent, the bytes that are had with that dependent."""
        self.needed = needed
        """Sum of bytes times the number of paths that they themselves depend on."""
        self.closure = closure
        self.dependents = dependents
        """The paths that depend on all members, the most widely used in the highest bit."""
        missed = size - use[dependents.bit_length()] * spread
        self.waste = (missed if missed > 0 else 0.0) + rate * (size * closure.bit_count() - needed)

    @classmethod
    def of(cls, graph: Graph, members: Sequence[int], use: Sequence[int], rate: float) -> _Group:
        closure, dependents = 0, -1
        for i in members:
            closure |= graph.closures[i]
            dependents &= graph.dependents[i]
        return cls(
            use,
            rate,
            graph.size(members),
            sum(graph.sizes[i] / max(1, graph.counts[i]) for i in members),
            sum(graph.sizes[i] * graph.closures[i].bit_count() for i in members),
            closure,
            dependents,
        )

    def joined(self, other: _Group) -> _Group:
        return _Group(
            self.use,
            self.rate,
            self.size + other.size,
            self.spread + other.spread,
            self.needed + other.needed,
            self.closure | other.closure,
            self.dependents & other.dependents,
        )

    def waste_of(self, other: _Group) -> float:
        """Return how many bytes are wasted more if the two are one layer."""
        # as in the constructor, without the object: this is called for every pair
        size = self.size + other.size
        dependents = self.dependents & other.dependents
        missed = size - self.use[dependents.bit_length()] * (self.spread + other.spread)
        waste = self.rate * (size * (self.closure | other.closure).bit_count() - self.needed - other.needed)
        return (waste + missed if missed > 0 else waste) - self.waste - other.waste


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

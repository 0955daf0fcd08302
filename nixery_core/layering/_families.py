"""Joins store paths that come together in every image: the part of a plan that no image changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from nixery_core.layering._graph import Graph


@attrs.frozen(eq=False)
class Unit:
    """Store paths that are never parted."""

    members: Sequence[int]
    """Numbers of the paths; the host first if it is one of them."""
    host: int
    """The path that brings the others along; a member or not."""


def families(graph: Graph, *, price: float, update_rate: float, is_host: Callable[[int, int], bool]) -> list[Unit]:
    """Return the paths as units.

    The host of a path is the most widely used one of its referrers for which ``is_host(path, referrer)``
    holds.  The companions of a host are joined to each other, and then to the host, as long as
    what a join wastes is less than *price*.  Neither the closure of a path nor its popularity depends on
    the image, so the same units appear in all images where the hosts do.

    Args:
        graph: The closure.
        price: Bytes that may be pulled in vain to have one layer less.
        update_rate: Chance of a package to be updated between two pulls.
        is_host: Whether the second path may take the first along.
    """
    companions: list[list[int]] = [[] for _ in range(len(graph))]
    needs = [closure.bit_count() for closure in graph.closures]
    for i, referrers in enumerate(graph.referrers):
        hosts = [j for j in referrers if is_host(i, j)]
        if hosts:
            # the host that needs least changes least
            host = min(hosts, key=lambda j: (-graph.counts[j], needs[j], graph.rank[j]))
            companions[host].append(i)
    blocks = [_Block(graph, i) for i in range(len(graph))]
    parted: list[Unit] = []
    # companions have lower numbers than their host, so they are whole when it comes to them
    for host, numbers in enumerate(companions):
        if not numbers:
            continue
        block = blocks[host]
        for group in _joined([blocks[i] for i in numbers], block, price=price, update_rate=update_rate):
            waste = group.missed + update_rate * group.size * (block.needs - group.needs)
            if waste <= price:
                block.take(group, block.closure)
            else:
                parted.append(Unit(group.members, group.host))
    hosted = {i for unit in parted for i in unit.members}
    for block in blocks:
        hosted.update(block.members[1:])
    return parted + [Unit(block.members, i) for i, block in enumerate(blocks) if i not in hosted]


class _Block:
    """A path and what joined it so far."""

    def __init__(self, graph: Graph, number: int) -> None:
        self.host = number
        self.members = [number]
        self.size = graph.sizes[number]
        self.closure = graph.closures[number]
        self.needs = self.closure.bit_count()
        self.missed = 0.0
        """Bytes that images pull again because they have the path without its host."""
        self.use = graph.counts[number]
        self.order = (self.needs, graph.rank[number])

    def take(self, other: _Block, closure: int) -> None:
        self.members += other.members
        self.size += other.size
        self.missed += other.missed
        self.closure = closure
        self.needs = closure.bit_count()


def _joined(blocks: list[_Block], host: _Block, *, price: float, update_rate: float) -> list[_Block]:
    """Join companions of *host* to each other, where the waste is below *price*."""
    for block in blocks:
        block.missed = block.size * max(0.0, 1 - host.use / block.use)
    groups: list[_Block] = []
    for block in sorted(blocks, key=lambda block: block.order):
        best: tuple[float, _Block, int] | None = None
        for group in groups:
            missed = group.missed + block.missed
            if missed > price:
                continue
            closure = group.closure | block.closure
            needs = closure.bit_count()
            more = group.size * (needs - group.needs) + block.size * (needs - block.needs)
            waste = missed + update_rate * more
            if waste <= price and (best is None or waste < best[0]):
                best = waste, group, closure
        if best is None:
            groups.append(block)
        else:
            best[1].take(block, best[2])
            best[1].host = host.host
    return groups

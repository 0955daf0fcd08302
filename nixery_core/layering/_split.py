"""Splits many small store paths into few groups by what they depend on."""

from __future__ import annotations

from collections.abc import Sequence

from nixery_core.layering._graph import Graph


def split_by_dependencies(graph: Graph, blocks: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Return the numbers of *blocks* in at most *limit* groups.

    An update of a package renames all that depends on it, so blocks that depend on the same paths
    change together.  The paths that part the blocks most evenly are asked first.
    """
    closures = graph.closures()
    needs = [0] * len(blocks)
    for number, block in enumerate(blocks):
        for i in block:
            needs[number] |= closures[i]
    holders = [0] * len(graph)
    for need in needs:
        while need:
            low = need & -need
            holders[low.bit_length() - 1] += 1
            need ^= low
    half = len(blocks)
    candidates = sorted(
        (i for i in range(len(graph)) if 0 < holders[i] < half),
        key=lambda i: (abs(2 * holders[i] - half), graph.labels[i], graph.paths[i]),
    )
    groups = [list(range(len(blocks)))]
    for candidate in candidates:
        if len(groups) >= limit:
            break
        parted: list[list[int]] = []
        for group in groups:
            with_it = [number for number in group if needs[number] >> candidate & 1]
            if len(with_it) in (0, len(group)):
                parted.append(group)
            else:
                parted += [with_it, [number for number in group if not needs[number] >> candidate & 1]]
        if len(parted) <= limit:
            groups = parted
    return groups

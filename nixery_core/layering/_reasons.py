"""Words for the reasons of plans."""

from __future__ import annotations

from collections.abc import Sequence

from nixery_core.layering._graph import Graph


def some(graph: Graph, members: Sequence[int]) -> str:
    """Return the names of the largest of *members*, and how many there are beside."""
    names = [graph.labels[i] for i in sorted(members, key=lambda i: (-graph.sizes[i], graph.rank[i]))]
    shown = names if len(names) <= 4 else names[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 4 else "")

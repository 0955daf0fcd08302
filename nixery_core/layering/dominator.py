"""Nixery's strategy: subtrees of the dominator tree, merged by popularity and size."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import attrs

from nixery_core.errors import InvalidConfig
from nixery_core.layering._graph import Graph
from nixery_core.layering._order import bottom_first
from nixery_core.layering._reasons import some
from nixery_core.layering.layerer import LayerPlan, check_budget
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure

_IMAGE = -1
"""The node above all roots."""


@attrs.frozen(kw_only=True)
class DominatorLayerer:
    """Puts each path with the one that all ways to it lead through, as Nixery does.

    The image refers to its roots, and in this graph also to every *large* or *popular* path.  Each
    subtree right below the image in the dominator tree becomes a layer, and the layers with the lowest
    rating, bytes times popularity, are merged until the budget is kept.

    Differs from Nixery (``builder/layers.go``): sizes are those of the paths and not of their closures,
    so no byte is counted twice; equal ratings are ordered by name, so the plan is the same on every
    machine; and what was merged lies on top, since no other image has it.

    Needs networkx (extra ``dominator``).
    """

    large: int = attrs.field(default=100_000_000, validator=attrs.validators.ge(0))
    """Paths of more bytes are not put below another one (Nixery: 100 MB)."""
    popular: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    """Paths that are used more widely are not put below another one (Nixery: 100)."""

    @property
    def id(self) -> str:
        """The name of the strategy with its version and parameters."""
        return f"dominator/2 large={self.large} popular={self.popular}"

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerPlan, ...]:
        """Return at most *budget* plans in manifest order.

        Raises:
            LayerBudgetError: For a budget outside 1..125.
            InvalidConfig: networkx is not installed.
        """
        check_budget(budget)
        graph = Graph.of(closure, popularity)
        subtrees = self._subtrees(graph)
        heap = [
            (max(1, graph.counts[top]) * graph.size(members), graph.rank[top], members)
            for top, members in subtrees.items()
        ]
        heapq.heapify(heap)
        merged: list[int] = []
        while len(heap) + bool(merged) > budget:
            merged += heapq.heappop(heap)[2]
        return bottom_first(
            graph,
            [(members, _reason(graph, members)) for _, _, members in heap],
            [(merged, f"lowest in bytes times popularity: {some(graph, merged)}")] if merged else [],
        )

    def _subtrees(self, graph: Graph) -> dict[int, list[int]]:
        """Return what lies below each child of the image in the dominator tree, the child first."""
        above = _dominators(graph, self._children(graph))
        subtrees: dict[int, list[int]] = {}
        top: dict[int, int] = {}
        # dominators refer to what they dominate, so they have higher numbers
        for i in reversed(range(len(graph))):
            top[i] = i if above[i] == _IMAGE else top[above[i]]
            subtrees.setdefault(top[i], []).append(i)
        return subtrees

    def _children(self, graph: Graph) -> list[int]:
        """Return what the image refers to."""
        roots = set(graph.roots)
        return [
            i
            for i in range(len(graph))
            # a path that nothing refers to is in the closure for the image's own sake
            if i in roots or not graph.referrers[i] or graph.sizes[i] > self.large or graph.counts[i] > self.popular
        ]


def _dominators(graph: Graph, children: list[int]) -> Mapping[int, int]:
    """Return the immediate dominator of each path."""
    try:
        import networkx
    except ImportError:
        raise InvalidConfig(
            "the dominator strategy needs networkx, which is not installed",
            hint="pip install 'nixery-core[dominator]', or choose another strategy",
        ) from None
    edges = networkx.DiGraph()
    edges.add_node(_IMAGE)
    edges.add_edges_from((_IMAGE, i) for i in children)
    edges.add_edges_from((i, j) for i, references in enumerate(graph.references) for j in references)
    result: Mapping[int, int] = networkx.immediate_dominators(edges, _IMAGE)
    return result


def _reason(graph: Graph, members: list[int]) -> str:
    top = graph.labels[members[0]]
    if len(members) == 1:
        return f"{top} alone"
    return f"{top} and {some(graph, members[1:])}, which this image has only through it"

"""The strategies that need no thought: everything in one layer, and one layer a store path."""

from __future__ import annotations

import attrs

from nixery_core.layering._graph import Graph
from nixery_core.layering._order import bottom_first
from nixery_core.layering.layerer import LayerPlan, check_budget
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure


@attrs.frozen
class SingleLayerer:
    """Puts the whole closure into one layer: for images that are copied, never pulled or updated."""

    @property
    def id(self) -> str:
        """The name of the strategy with its version."""
        return "single/1"

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerPlan, ...]:
        """Return one plan, or none for an empty closure; raises LayerBudgetError."""
        check_budget(budget)
        if not len(closure):
            return ()
        graph = Graph.of(closure, popularity)
        return (graph.plan(range(len(graph)), "the whole closure in one layer, as asked"),)


@attrs.frozen
class PerPathLayerer:
    """Gives every store path a layer of its own; beyond the budget the smallest share the last one.

    Within the budget nothing that two images have in common is ever pulled twice.
    """

    @property
    def id(self) -> str:
        """The name of the strategy with its version."""
        return "per-path/2"

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerPlan, ...]:
        """Return at most *budget* plans in manifest order; raises LayerBudgetError."""
        check_budget(budget)
        graph = Graph.of(closure, popularity)
        largest = sorted(range(len(graph)), key=lambda i: (-graph.sizes[i], graph.rank[i]))
        alone = largest if len(largest) <= budget else largest[: budget - 1]
        rest = largest[len(alone) :]
        smallest = (
            [(rest, f"the {len(rest)} smallest store paths, beyond the budget of {budget} layers")] if rest else []
        )
        return bottom_first(graph, [([i], "one layer a store path") for i in alone], smallest)

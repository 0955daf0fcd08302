"""The default strategy: join what is used together everywhere, leave the rest alone."""

from __future__ import annotations

import attrs

from nixery_core.layering._graph import Graph
from nixery_core.layering._order import bottom_first
from nixery_core.layering._split import split_by_dependencies
from nixery_core.layering.layerer import LayerPlan, check_budget
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure


@attrs.frozen(kw_only=True)
class UnitsLayerer:
    """Joins a small store path to the one that brings it along, by facts that hold in every image.

    A path of at most *small* bytes joins the most widely used path that refers to it, where that one
    is used nearly as widely.  As this follows from the popularity data and not from the rest of the
    image, the same layer appears in every image that holds these packages.  What is beyond the budget
    is split by what it depends on, so that an update changes few layers.
    """

    small: int = attrs.field(default=4 << 20, validator=attrs.validators.ge(0))
    """Most bytes of NAR that join another path."""
    share: float = attrs.field(default=0.9, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    """How widely the other path must be used, as part of this path's own count."""
    least: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    """Counts below this are too few to tell."""

    @property
    def id(self) -> str:
        """The name of the strategy with its version and parameters."""
        return f"units/1 small={self.small} share={self.share!r} least={self.least}"

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerPlan, ...]:
        """Return at most *budget* plans, most widely used first; raises LayerBudgetError."""
        check_budget(budget)
        graph = Graph.of(closure, popularity)
        units = self._units(graph)
        if len(units) <= budget:
            return bottom_first(graph, [(unit, _why_unit(graph, unit)) for unit in units])
        sizes = [sum(graph.sizes[i] for i in unit) for unit in units]
        largest = sorted(range(len(units)), key=lambda n: (-sizes[n], graph.paths[units[n][0]]))
        groups = max(1, budget // 5)
        alone, rest = largest[: budget - groups], [units[n] for n in largest[budget - groups :]]
        layers = [(units[n], _why_unit(graph, units[n])) for n in alone]
        for group in split_by_dependencies(graph, rest, groups):
            members = [i for n in group for i in rest[n]]
            layers.append((members, f"{len(members)} small store paths that depend on the same packages"))
        return bottom_first(graph, layers)

    def _units(self, graph: Graph) -> list[list[int]]:
        """Return the paths as units, the path that brings the others along first."""
        joined = list(graph.sizes)
        target = list(range(len(graph)))
        for i in range(len(graph)):
            if joined[i] > self.small or not graph.referrers[i] or graph.counts[i] < self.least:
                continue
            host = max(graph.referrers[i], key=lambda j: (graph.counts[j], graph.labels[j], graph.paths[j]))
            if graph.counts[host] >= max(self.least, self.share * graph.counts[i]):
                target[i] = host
                joined[host] += joined[i]
        units: dict[int, list[int]] = {}
        for i in reversed(range(len(graph))):
            target[i] = target[target[i]]
            units.setdefault(target[i], []).append(i)
        return list(units.values())


def _why_unit(graph: Graph, unit: list[int]) -> str:
    host = graph.labels[unit[0]]
    if len(unit) == 1:
        return f"{host} alone"
    return f"{host} and {len(unit) - 1} small store paths that nearly always come with it"

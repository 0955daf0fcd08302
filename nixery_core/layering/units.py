"""The default strategy: join what is used together everywhere, leave the rest alone."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from nixery_core.layering._families import Unit, families
from nixery_core.layering._graph import Graph
from nixery_core.layering._order import Layer, bottom_first
from nixery_core.layering._reasons import some
from nixery_core.layering._rest import gather
from nixery_core.layering.layerer import DEFAULT_BUDGET, LayerPlan, check_budget
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure

_TIGHTNESS = 1.5
"""The n-th largest store path of an image has about n ** -1.5 times the bytes of the largest: what a
layer is worth when there are n of them."""
_REST_UPDATES = 2
"""A layer of the rest holds several families, and an update of one brings the others along: each byte that
an update pulls in vain counts as two."""


@attrs.frozen(kw_only=True)
class UnitsLayerer:
    """Joins store paths that come together in every image, and splits what is beyond the budget for this one.

    Whether paths are joined follows from how widely they are used outside the image and from what they
    depend on, never from the rest of the image, so the same layers appear in every image that holds these
    packages.  A join costs bytes that are pulled in vain: by images that have a path without its
    companions, and after an update that only a companion needed.  Paths are joined while that is less
    than the *price* of a layer.  The smallest units beyond the budget are first joined at a higher price,
    still by what holds in every image, and then gathered by the same measure until they fit.
    """

    price: int = attrs.field(default=704 << 10, validator=attrs.validators.ge(0))
    """Bytes that may be wasted to have one layer less, with the default budget; more with a smaller one."""
    rest_price: int = attrs.field(default=24 << 20, validator=attrs.validators.ge(0))
    """The price for the small paths beyond the budget, with any budget for which *price* is not higher."""
    share: float = attrs.field(default=0.75, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    """How widely the host of a path must be used, as part of the path's own count."""
    least: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    """Counts below this are too few to tell."""
    update_rate: float = attrs.field(default=0.007, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    """Chance of a package to be updated between two pulls."""

    @property
    def id(self) -> str:
        """The name of the strategy with its version and parameters."""
        return (
            f"units/4 price={self.price} rest_price={self.rest_price} share={self.share!r} least={self.least} "
            f"update_rate={self.update_rate!r}"
        )

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> tuple[LayerPlan, ...]:
        """Return at most *budget* plans in manifest order; raises LayerBudgetError."""
        check_budget(budget)
        graph = Graph.of(closure, popularity)
        price = self.price * (DEFAULT_BUDGET / budget) ** _TIGHTNESS
        units = self._families(graph, price, self.update_rate)
        if len(units) <= budget:
            return bottom_first(graph, [_layer(graph, unit) for unit in units])
        alone, rest = _cut(graph, units, budget)
        blocks = [unit.members for unit in rest]
        if self.rest_price > price:
            blocks = _together(blocks, self._families(graph, self.rest_price, _REST_UPDATES * self.update_rate))
        groups = [[n] for n in range(len(blocks))]
        if len(groups) > budget - len(alone):
            groups = gather(graph, blocks, budget - len(alone), update_rate=self.update_rate)
        return bottom_first(
            graph,
            [_layer(graph, unit) for unit in alone],
            [_rest_layer(graph, [i for n in group for i in blocks[n]]) for group in groups],
        )

    def _families(self, graph: Graph, price: float, update_rate: float) -> list[Unit]:
        return families(
            graph,
            price=price,
            update_rate=update_rate,
            is_host=lambda path, host: (
                graph.counts[path] >= self.least
                and graph.counts[host] >= max(self.least, self.share * graph.counts[path])
            ),
        )


def _cut(graph: Graph, units: Sequence[Unit], budget: int) -> tuple[list[Unit], list[Unit]]:
    """Part the units that have a layer of their own from the small rest, which gets a sixteenth of the budget or more.

    The cut is at a power of two, so that images of about one size make it at the same place.
    """
    sizes = {unit: graph.size(unit.members) for unit in units}
    first_beyond = sorted(sizes.values(), reverse=True)[budget - max(1, budget // 16)]
    cut = 1 << first_beyond.bit_length()
    return [unit for unit in units if sizes[unit] >= cut], [unit for unit in units if sizes[unit] < cut]


def _together(blocks: Sequence[Sequence[int]], units: Sequence[Unit]) -> list[Sequence[int]]:
    """Join the blocks whose first paths are in one of *units*."""
    unit_of = {i: number for number, unit in enumerate(units) for i in unit.members}
    joined: dict[int, list[int]] = {}
    for block in blocks:
        joined.setdefault(unit_of[block[0]], []).extend(block)
    return list(joined.values())


def _layer(graph: Graph, unit: Unit) -> Layer:
    members, host = unit.members, graph.labels[unit.host]
    if len(members) == 1:
        return members, f"{host} alone"
    if members[0] == unit.host:
        return members, f"{host} and {some(graph, members[1:])}, which nearly always come with it"
    return members, f"{some(graph, members)}, which nearly always come with {host}"


def _rest_layer(graph: Graph, members: Sequence[int]) -> Layer:
    if len(members) == 1:
        return members, f"{graph.labels[members[0]]} alone"
    return members, f"small, and together because they depend on much the same: {some(graph, members)}"

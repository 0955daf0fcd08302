"""The order of layers in the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nixery_core.layering._graph import Graph
from nixery_core.layering.layerer import LayerPlan

Layer = tuple[Sequence[int], str]
"""The numbers of store paths, and why they are together."""


def bottom_first(graph: Graph, shared: Iterable[Layer], particular: Iterable[Layer] = ()) -> tuple[LayerPlan, ...]:
    """Return the plans of all layers in manifest order.

    Stores that name a layer by all that lies below it (overlay2, the snapshotters of containerd) share
    no more than the common bottom of two images.  So the layers come first whose bytes other images
    most likely ask for as well, bytes times use, and what is *particular* to this image lies on top.
    """

    def place(layer: Layer) -> tuple[int, int]:
        members = layer[0]
        # without popularity data the bytes alone decide
        use = max(1, max(graph.counts[i] for i in members))
        return -use * graph.size(members), min(graph.rank[i] for i in members)

    order = [*sorted(shared, key=place), *sorted(particular, key=place)]
    return tuple(graph.plan(members, reason) for members, reason in order)

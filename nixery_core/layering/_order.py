"""The order of layers in the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nixery_core.layering._graph import Graph
from nixery_core.layering.layerer import LayerPlan
from nixery_core.model.storepath import StorePath


def bottom_first(graph: Graph, layers: Iterable[tuple[Sequence[int], str]]) -> tuple[LayerPlan, ...]:
    """Return the plans of *layers*, the most widely used at the bottom.

    Stores that name a layer by all that lies below it (overlay2, the snapshotters of containerd) share
    no more than the common bottom of two images.
    """

    def place(layer: tuple[Sequence[int], str]) -> tuple[int, str, StorePath]:
        members = layer[0]
        top = max(graph.counts[i] for i in members)
        return -top, min(graph.labels[i] for i in members), min(graph.paths[i] for i in members)

    return tuple(graph.plan(members, reason) for members, reason in sorted(layers, key=place))

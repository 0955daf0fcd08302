"""The interface between a closure and its layers."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from nixery_core.errors import LayerBudgetError, LayerPlanError
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure
from nixery_core.model.storepath import StorePath

MAX_LAYERS = 125
"""Most layers that every common container engine takes (moby: layer_store maxLayerDepth)."""
DEFAULT_BUDGET = 94
"""Layers for store paths unless asked otherwise; the customisation layer comes on top."""


def _sorted(paths: Iterable[StorePath]) -> tuple[StorePath, ...]:
    # the order of StorePath itself, many times faster than its operators
    return tuple(sorted(paths, key=operator.attrgetter("hash", "name")))


@attrs.frozen
class LayerPlan:
    """Store paths that go into one layer together.

    >>> plan = LayerPlan([StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15")], nar_size=96)
    >>> plan.key(archive_version=1, codec_id="gzip")[:8]
    '151894ed'
    """

    paths: tuple[StorePath, ...] = attrs.field(converter=_sorted)
    """The store paths, sorted."""
    nar_size: int
    """Sum of their NAR sizes, bytes."""
    reason: str = attrs.field(default="", eq=False)
    """Why these paths are together, for a person."""

    def key(self, *, archive_version: int, codec_id: str) -> str:
        """Return the identity of the layer's input: 64 hexadecimal characters.

        Equal paths, archive format and codec give equal keys, whatever image the layer is in.
        """
        state = hashlib.sha256()
        for field in ("nixery-core layer", str(archive_version), codec_id, *(str(path) for path in self.paths)):
            raw = field.encode()
            state.update(len(raw).to_bytes(8, "big") + raw)
        return state.hexdigest()


class Layerer(Protocol):
    """Splits a closure into layers.

    A layerer is a pure function of its arguments: the plans do not depend on the order of the
    input, and come in manifest order, bottom layer first.
    """

    @property
    def id(self) -> str:
        """Names the strategy and its parameters; enters the cache key of images."""
        ...

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> Sequence[LayerPlan]:
        """Return at most *budget* plans that hold every path of *closure* exactly once."""
        ...


def check_budget(budget: int, *, beside: int = 0) -> int:
    """Return *budget* if it is a whole number from 1, and no more than MAX_LAYERS with the layers *beside* it.

    Layers beside the store paths are those of a base image and the customisation layer.

    Raises LayerBudgetError.

    >>> check_budget(94, beside=31)
    94
    >>> check_budget(94, beside=32)
    Traceback (most recent call last):
    nixery_core.errors.LayerBudgetError: a budget of 94 and 32 other layers are more than 125
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= MAX_LAYERS:
        raise LayerBudgetError(
            f"a layer budget is a whole number from 1 to {MAX_LAYERS}, not {budget!r}",
            hint=f"container engines take images of at most {MAX_LAYERS} layers",
        )
    if isinstance(beside, bool) or not isinstance(beside, int) or beside < 0:
        raise LayerBudgetError(
            f"a number of layers is a whole number from 0, not {beside!r}", hint="count the layers of the base image"
        )
    if budget + beside > MAX_LAYERS:
        left = MAX_LAYERS - beside
        raise LayerBudgetError(
            f"a budget of {budget} and {beside} other layer{'s' if beside > 1 else ''} are more than {MAX_LAYERS}",
            hint=f"the customisation layer and those of a base count too: use a budget of at most {left}"
            if left > 0
            else "use a base of fewer layers",
        )
    return budget


def check_plans(plans: Iterable[LayerPlan], closure: Closure, budget: int) -> tuple[LayerPlan, ...]:
    """Return *plans* if they are an exact partition of *closure* within *budget*; raises LayerPlanError."""
    result = tuple(plans)
    if len(result) > budget:
        raise LayerPlanError(f"the layerer made {len(result)} layers of a budget of {budget}")
    seen: set[StorePath] = set()
    for plan in result:
        if not plan.paths:
            raise LayerPlanError("the layerer made a layer with no store path")
        for path in plan.paths:
            if path in seen:
                raise LayerPlanError(f"the layerer put {path} into two layers")
            if path not in closure:
                raise LayerPlanError(f"the layerer put {path} into a layer, but it is not in the closure")
            seen.add(path)
    missing = [str(info.path) for info in closure if info.path not in seen]
    if missing:
        raise LayerPlanError(f"the layerer left out {len(missing)} store paths, first {missing[0]}")
    return result

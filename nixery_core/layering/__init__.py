"""How the store paths of a closure become layers.

A :class:`Layerer` turns a closure, a :class:`Popularity` and a budget into :class:`LayerPlan` objects,
bottom layer first.  :class:`UnitsLayerer` is the default; any object with ``id`` and ``plan`` will do.
"""

from nixery_core.layering.dominator import DominatorLayerer
from nixery_core.layering.layerer import (
    DEFAULT_BUDGET,
    MAX_LAYERS,
    Layerer,
    LayerPlan,
    check_budget,
    check_plans,
)
from nixery_core.layering.popularity import Popularity
from nixery_core.layering.simple import PerPathLayerer, SingleLayerer
from nixery_core.layering.units import UnitsLayerer

__all__ = [
    "DEFAULT_BUDGET",
    "MAX_LAYERS",
    "DominatorLayerer",
    "LayerPlan",
    "Layerer",
    "PerPathLayerer",
    "Popularity",
    "SingleLayerer",
    "UnitsLayerer",
    "check_budget",
    "check_plans",
]

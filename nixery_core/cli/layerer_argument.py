"""The argument ``--layerer``: how a closure is split into layers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from nixery_core.errors import InvalidConfig, nearest
from nixery_core.layering import DominatorLayerer, Layerer, PerPathLayerer, SingleLayerer, UnitsLayerer

_LAYERERS: Mapping[str, Callable[[], Layerer]] = {
    "units": UnitsLayerer,
    "dominator": DominatorLayerer,
    "per-path": PerPathLayerer,
    "single": SingleLayerer,
}


def add_layerer_argument(parser: argparse._ActionsContainer) -> None:
    """Add ``--layerer`` to a command that makes layers."""
    parser.add_argument(
        "--layerer",
        metavar="STRATEGY",
        default="units",
        help=f"how store paths are split into layers: {', '.join(_LAYERERS)} (default: units)",
    )


def parse_layerer(name: str) -> Layerer:
    """Return the strategy called *name*; raises InvalidConfig.

    >>> parse_layerer("per-path").id
    'per-path/2'
    """
    if name not in _LAYERERS:
        close = nearest(name, tuple(_LAYERERS), limit=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(_LAYERERS)}"
        raise InvalidConfig(f"{name!r} is not a layering strategy", hint=hint)
    return _LAYERERS[name]()

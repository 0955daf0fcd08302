"""The arguments that say which Nix works, and how."""

from __future__ import annotations

import argparse
from typing import Any

from nixery_core.errors import InvalidConfig
from nixery_core.nix import Nix


def add_nix_arguments(group: argparse._ActionsContainer) -> None:
    """Add ``--timeout``, ``--max-silent-time``, ``--nix-store`` and ``--nix-option``."""
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="longest time for one call of Nix")
    group.add_argument("--max-silent-time", type=float, metavar="SECONDS", help="longest silence of a build")
    group.add_argument(
        "--nix-store", metavar="STORE", help="Nix store to build in, such as a folder (default: Nix's own)"
    )
    group.add_argument(
        "--nix-option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting for Nix"
    )


def nix_of(arguments: argparse.Namespace) -> Nix:
    """Return the Nix that the arguments ask for; raises InvalidConfig."""
    settings: dict[str, Any] = {"options": dict(arguments.nix_option)}
    if arguments.nix_store is not None:
        settings["store"] = arguments.nix_store
    if arguments.timeout is not None:
        settings["timeout"] = _positive(arguments.timeout, "--timeout")
    if arguments.max_silent_time is not None:
        settings["max_silent"] = _positive(arguments.max_silent_time, "--max-silent-time")
    return Nix(**settings)


def _positive(seconds: float, option: str) -> float:
    if not seconds > 0:
        raise InvalidConfig(f"{option} is a number of seconds above 0, not {seconds}")
    return seconds

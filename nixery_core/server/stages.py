"""The stages of a build, as far as its events tell them."""

from __future__ import annotations

from nixery_core import events
from nixery_core.events import BuildEvent

FIRST = "evaluate"
STAGES = (FIRST, "realise", "plan", "write")
"""Evaluation of the packages, builds and downloads of Nix, the split into layers, the writing of layers."""


def stage_after(event: BuildEvent) -> str | None:
    """Return the stage that begins with an event, or None where none does.

    >>> stage_after(events.LayersPlanned(layers=12))
    'write'
    """
    match event:
        case events.PackagesResolved():
            return "realise"
        case events.ClosureResolved():
            return "plan"
        case events.LayersPlanned():
            return "write"
    return None

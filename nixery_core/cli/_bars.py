"""Progress bars, drawn by rich (extra ``cli``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nixery_core import events
from nixery_core.cli.event_text import describe
from nixery_core.cli.walk_progress import describe_walk
from nixery_core.events import BuildEvent, EventCallback
from nixery_core.popcount.walk import WalkProgress

_QUIET = (events.LayerBuilt, events.LayerCached, events.NixBuildStarted)


@contextmanager
def bars(stream: TextIO, *, verbose: bool) -> Iterator[EventCallback]:
    """Draw one bar for Nix and one for the layers; lines scroll above them."""
    console = Console(file=stream)
    shown = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    state = _State(shown)

    def callback(event: BuildEvent) -> None:
        state.follow(event)
        line = None if isinstance(event, _QUIET) and not verbose else describe(event, verbose=verbose)
        if line is not None:
            # file names are no markup
            console.print(line, markup=False, highlight=False)

    with shown:
        yield callback


@contextmanager
def walk_bar(stream: TextIO) -> Iterator[Callable[[WalkProgress], None]]:
    """Draw one bar for the store paths of a walk."""
    shown = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    )
    next_time = 0.0

    def callback(progress: WalkProgress) -> None:
        nonlocal next_time
        # it is called for each of many thousand paths
        if time.monotonic() >= next_time:
            next_time = time.monotonic() + 0.1
            shown.update(task, total=progress.found, completed=progress.done, description=describe_walk(progress))

    with shown:
        task = shown.add_task("store paths", total=None)
        yield callback


class _State:
    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._nix: TaskID = shown.add_task("resolving", total=None)
        self._layers: TaskID | None = None
        self._expected = 0
        self._finished = 0
        self._archived: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def follow(self, event: BuildEvent) -> None:
        match event:
            case events.NixProgress(activity=activity, done=done, expected=expected):
                self._shown.update(self._nix, description=f"nix {activity} {done}/{expected}")
            case events.NixBuildStarted(derivation=derivation):
                name = derivation.rpartition("/")[2].partition("-")[2]
                self._shown.update(self._nix, description=f"nix build {name.removesuffix('.drv')[:40]}")
            case events.ClosureResolved(nar_size=nar_size):
                self._expected = nar_size
                self._shown.remove_task(self._nix)
                self._layers = self._shown.add_task("layers", total=nar_size)
            case events.LayerStarted(layer_key=layer_key, nar_size=nar_size):
                self._sizes[layer_key] = nar_size
            case events.LayerProgress(layer_key=layer_key, archived=archived):
                self._archived[layer_key] = archived
            case events.LayerBuilt(layer_key=layer_key):
                self._archived[layer_key] = self._sizes.get(layer_key, 0)
        if self._layers is not None:
            self._shown.update(self._layers, completed=min(sum(self._archived.values()), self._expected))

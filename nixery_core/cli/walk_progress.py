"""How far a walk is, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from nixery_core.popcount.walk import WalkProgress

INTERVAL = 5.0
"""Seconds between two lines."""


@contextmanager
def walk_progress(style: str, *, stream: TextIO | None = None) -> Iterator[Callable[[WalkProgress], None]]:
    """Give a callback that shows progress in *style*: ``auto``, ``bars``, ``plain`` or ``none``."""
    stream = sys.stderr if stream is None else stream
    if style == "none":
        yield lambda _: None
        return
    if style == "bars" or (style == "auto" and stream.isatty()):
        try:
            from nixery_core.cli._bars import walk_bar
        except ImportError:  # the extra "cli" is not installed
            pass
        else:
            with walk_bar(stream) as callback:
                yield callback
            return
    lines = _PlainLines(stream)
    yield lines
    lines.end()


def describe_walk(progress: WalkProgress) -> str:
    """Return one line for a person.

    >>> describe_walk(WalkProgress(done=1200, found=70000, missing=3, failed=0))
    '1,200 of 70,000 store paths, 3 missing'
    """
    text = f"{progress.done:,} of {progress.found:,} store paths"
    text += f", {progress.missing:,} missing" if progress.missing else ""
    return text + (f", {progress.failed:,} failed" if progress.failed else "")


class _PlainLines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + INTERVAL
        self._last: WalkProgress | None = None

    def __call__(self, progress: WalkProgress) -> None:
        self._last = progress
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL
            self._print(progress)

    def end(self) -> None:
        if self._last is not None:
            self._print(self._last)

    def _print(self, progress: WalkProgress) -> None:
        print(describe_walk(progress), file=self._stream, flush=True)

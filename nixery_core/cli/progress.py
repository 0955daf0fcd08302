"""Progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from nixery_core.cli.event_text import describe
from nixery_core.events import BuildEvent, EventCallback, ignore_events


@contextmanager
def progress(style: str, *, verbose: bool, stream: TextIO | None = None) -> Iterator[EventCallback]:
    """Give a callback that shows events in *style*: ``auto``, ``bars``, ``plain`` or ``none``."""
    stream = sys.stderr if stream is None else stream
    if style == "none":
        yield ignore_events
        return
    if style == "bars" or (style == "auto" and stream.isatty()):
        try:
            from nixery_core.cli._bars import bars
        except ImportError:  # the extra "cli" is not installed
            pass
        else:
            with bars(stream, verbose=verbose) as callback:
                yield callback
            return
    yield _PlainLines(stream, verbose=verbose)


class _PlainLines:
    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose

    def __call__(self, event: BuildEvent) -> None:
        line = describe(event, verbose=self._verbose)
        if line is not None:
            print(line, file=self._stream, flush=True)

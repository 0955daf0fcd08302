"""What the commands that keep a storage healthy have in common."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nixery_core.cli.text import bytes_text
from nixery_core.keeping.problem import KeepingProgress, ProgressCallback, ignore_progress

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)")
# how often progress is shown, seconds
_EVERY = 0.5


def duration(text: str) -> float:
    """Read a time span in seconds, with a unit behind it or not; raises ArgumentTypeError.

    >>> duration("90"), duration("1.5h"), duration("7d")
    (90.0, 5400.0, 604800.0)
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span: write 90s, 30m, 24h, 7d or 4w")
    return float(match[1]) * _UNITS[match[2] or "s"]


def duration_text(seconds: float) -> str:
    """Return a time span for a person.

    >>> duration_text(59), duration_text(5400), duration_text(7 * 86400)
    ('59 s', '1.5 h', '7.0 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def positive(text: str) -> int:
    """Read a number above 0; raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def add_keeping_arguments(parser: argparse.ArgumentParser, *, workers: int) -> None:
    """Add what every command takes: the storage, and how to report."""
    parser.add_argument("store", metavar="STORE", help="storage: a folder, or any URL that fsspec knows")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument(
        "--workers", type=positive, default=workers, metavar="N", help=f"objects at once (default: {workers})"
    )
    parser.add_argument(
        "--progress",
        choices=["auto", "plain", "none"],
        default="auto",
        help="on stderr (default: where that is a terminal)",
    )


@contextmanager
def following(style: str) -> Iterator[ProgressCallback]:
    """Give a callback that shows progress on stderr, on one line of a terminal."""
    terminal = sys.stderr.isatty()
    if style == "none" or (style == "auto" and not terminal):
        yield ignore_progress
        return
    shown = time.monotonic()

    def show(progress: KeepingProgress) -> None:
        nonlocal shown
        if time.monotonic() - shown < _EVERY:
            return
        shown = time.monotonic()
        size = f", {bytes_text(progress.size)}" if progress.size else ""
        line = f"{progress.stage}: {progress.objects}{size}"
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

"""Work in a process of its own that may be killed at any moment, and what it told until then."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

Tell = Callable[[str], object]
"""Tells the parent one line; it has arrived when the call returns, whatever happens to the child."""


@attrs.frozen
class Kill:
    """When a process is killed from outside: some seconds after it told a line that begins with *after*."""

    after: str
    seconds: float


@attrs.frozen
class Told:
    """What a child told, and what became of it."""

    lines: tuple[str, ...]
    times: tuple[float, ...] = attrs.field(repr=False)
    """When each line arrived, seconds of the monotonic clock."""
    result: Any
    """What its work returned; None if it was killed."""
    killed: bool

    def seconds(self, first: str, last: str) -> float:
        """Return the seconds from the first line that begins with *first* to the last that begins with *last*."""
        begins = [time for time, line in zip(self.times, self.lines, strict=True) if line.startswith(first)]
        ends = [time for time, line in zip(self.times, self.lines, strict=True) if line.startswith(last)]
        return ends[-1] - begins[0]


def in_child(work: Callable[[Tell], Any], *, kill: Kill | None = None) -> Told:
    """Return what *work* tells and returns in a process of its own; raises SystemExit if it fails by itself."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(work, write)
    os.close(write)
    lines: list[str] = []
    times: list[float] = []
    for line in _lines(read):
        lines.append(line)
        times.append(time.monotonic())
        if kill is not None and line.startswith(kill.after):
            # whatever it does by then: no one tells it before, and nobody reads what it tells meanwhile
            time.sleep(kill.seconds)
            os.kill(child, signal.SIGKILL)
            kill = None
    os.close(read)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Told(tuple(lines), tuple(times), None, killed=True)
    last = lines.pop() if lines else ""
    if last[:1] != "=":
        raise SystemExit(f"a process that was not killed failed: {last[1:] or status}")
    return Told(tuple(lines), tuple(times[:-1]), json.loads(last[1:]), killed=False)


def die() -> None:
    """End this process as if the power had failed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _work(work: Callable[[Tell], Any], write: int) -> None:
    code = 1
    try:
        result = work(lambda text: os.write(write, f"{text}\n".encode()))
        os.write(write, f"={json.dumps(result)}\n".encode())
        code = 0
    except BaseException as error:  # noqa: BLE001 - told to the parent, which has the last word
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        os.write(write, f"!{text}\n".encode())
    finally:
        os._exit(code)


def _lines(read: int) -> Iterator[str]:
    rest = b""
    while data := os.read(read, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()

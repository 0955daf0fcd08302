"""The processes below a process, and their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

Process = tuple[int, int]
"""A process id and its start time: together they name one process for ever."""


def descendants(root: int) -> set[Process]:
    """Return all processes below the process *root*; empty where there is no /proc."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        fields = _stat(pid)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append((pid, int(fields[19])))
    found: set[Process] = set()
    pending = [root]
    while pending:
        for process in children.pop(pending.pop(), []):
            found.add(process)
            pending.append(process[0])
    return found


def kill(processes: Iterable[Process]) -> None:
    """Kill those of *processes* that still run; their own children too, which then lost their parent."""
    for pid, started in processes:
        fields = _stat(pid)
        if fields is None or int(fields[19]) != started:
            continue
        below = descendants(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # it has ended, or it belongs to a build user and is Nix's to end
            continue
        kill(below)


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields of proc(5) stat from the state on, so [1] is the parent and [19] the start time."""
    try:
        # "pid (name) state ppid ..", and the name may hold anything
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None

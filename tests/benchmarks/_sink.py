"""A storage that keeps nothing, and how much memory this process took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nixery_core.model.digest import Digest


class Discard:
    """A Backend, as far as a LayerWriter needs one; counts what it is given."""

    def __init__(self) -> None:
        self.size = 0
        self.first = 0.0
        """Seconds from the beginning to the first byte."""
        self._begun = 0.0

    def open_blob(self) -> Any:
        self._begun = time.perf_counter()
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.size:
            self.first = time.perf_counter() - self._begun
        self.size += len(data)

    def commit(self, digest: Digest) -> None:
        pass

    def cancel(self) -> None:
        pass


def reset_peak_rss() -> float:
    """Forget how much memory this process once took; return how much it takes now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_rss() -> float:
    """Return the most memory that this process took since the reset, MiB."""
    return _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)

"""Real servers for tests: each on a free port of this machine, gone when the test session is over."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path],
    port: int,
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 30.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* until the end of the block, which begins when something listens on *port*.

    Raises:
        ConnectionError: If the program ends, or nothing listens after *timeout* seconds; says what it printed.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + timeout
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ConnectionError(f"{command[0]} does not serve port {port}: {log.read_text(errors='replace')}")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False

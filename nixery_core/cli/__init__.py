"""The command ``nixery-core``: a thin layer over the library."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from nixery_core.cli.arguments import parse_arguments
from nixery_core.cli.exit_codes import ExitCode, exit_code_of
from nixery_core.errors import NixeryError


class _Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that children are stopped and staging is emptied."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        with _terminating():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except NixeryError as error:
        print(f"nixery-core: {error.diagnostics()}", file=sys.stderr)
        return exit_code_of(error)
    except _Terminated:
        print("nixery-core: terminated; nothing half-written was left", file=sys.stderr)
        return ExitCode.TERMINATED
    except KeyboardInterrupt:
        print("nixery-core: interrupted; nothing half-written was left", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE


@contextmanager
def _terminating() -> Iterator[None]:
    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise _Terminated

    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread, where an embedder called us: its signals are its own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

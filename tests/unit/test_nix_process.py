"""Commands end, and leave nothing behind, however they end."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled, NixNotFound, NixTimeout
from nixery_core.nix import _process
from nixery_core.nix._process import Deadline, Finished, run


def call(
    *command: str,
    timeout: float | None = 20.0,
    max_silent: float | None = None,
    cancellation: Cancellation | None = None,
    lines: list[bytes] | None = None,
) -> Finished:
    return run(
        command,
        os.environ,
        on_line=(lines if lines is not None else []).append,
        deadline=Deadline.after(timeout),
        max_silent=max_silent,
        cancellation=cancellation or Cancellation(),
    )


def running(word: str) -> list[str]:
    """Return the commands of this machine that hold *word*."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in command.split(b"\0"):
            found.append(command.decode(errors="replace"))
    return found


def wait_until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


# a command whose child leads a session of its own, as the builders of Nix do
TREE = "import subprocess, sys; subprocess.run(['setsid', 'sleep', sys.argv[1]])"


def unique_seconds() -> str:
    return f"300.{time.time_ns() % 1_000_000_000:09d}"


class TestEnd:
    def test_gives_output_lines_and_exit_code(self) -> None:
        """Standard output is returned whole, standard error line by line, also a last line without end."""
        lines: list[bytes] = []
        finished = call("sh", "-c", "echo out; echo one >&2; printf two >&2; exit 3", lines=lines)
        assert finished == Finished(3, b"out\n")
        assert lines == [b"one", b"two"]

    def test_reads_both_streams_at_once(self) -> None:
        """A command that fills both pipes many times over does not hang."""
        script = "import os\nfor _ in range(40): os.write(1, b'x' * 50000); os.write(2, b'y' * 49999 + b'\\n')"
        lines: list[bytes] = []
        finished = call(sys.executable, "-c", script, lines=lines)
        assert len(finished.stdout) == 2_000_000
        assert [len(line) for line in lines] == [49999] * 40

    def test_cuts_an_endless_line(self) -> None:
        """A line without end arrives in pieces, so that it never has to fit into memory."""
        lines: list[bytes] = []
        call(sys.executable, "-c", "import os\nfor _ in range(40): os.write(2, b'y' * 50000)", lines=lines)
        assert sum(map(len, lines)) == 2_000_000
        assert max(map(len, lines)) < 400_000

    def test_has_no_input(self) -> None:
        """A command that asks a question gets no answer instead of waiting for one."""
        assert call("sh", "-c", "read answer || echo none").stdout == b"none\n"

    def test_does_not_wait_for_a_daemon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A daemon that inherited the pipes does not keep the call from its end, and it is ended."""
        monkeypatch.setattr(_process, "_LINGER", 0.2)
        seconds = unique_seconds()
        begin = time.monotonic()
        assert call("sh", "-c", f"sleep {seconds} & echo done").stdout == b"done\n"
        assert time.monotonic() - begin < 5
        assert wait_until(lambda: not running(seconds))

    def test_a_missing_program_is_not_found(self) -> None:
        """A program that is not there raises NixNotFound with the way to install it."""
        with pytest.raises(NixNotFound, match="no-such-nix") as caught:
            call("/no-such-nix")
        assert "nixos.org" in caught.value.hint


class TestLimits:
    def test_the_deadline_ends_the_whole_tree(self) -> None:
        """When the time is over, children in sessions of their own end with the command."""
        seconds = unique_seconds()
        with pytest.raises(NixTimeout) as caught:
            call(sys.executable, "-c", TREE, seconds, timeout=0.8)
        assert caught.value.seconds == 0.8
        assert wait_until(lambda: not running(seconds))

    def test_silence_is_limited(self) -> None:
        """Words put the limit off, silence reaches it."""
        lines: list[bytes] = []
        script = "for i in 1 2 3 4; do echo $i >&2; sleep 0.2; done; sleep 300"
        with pytest.raises(NixTimeout, match=r"said nothing for 0\.6 s"):
            call("sh", "-c", script, max_silent=0.6, lines=lines)
        assert lines == [b"1", b"2", b"3", b"4"]

    def test_a_command_that_refuses_to_end_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever ignores the polite signal is killed after the grace period, with all its children."""
        monkeypatch.setattr(_process, "_GRACE", 0.3)
        seconds = unique_seconds()
        stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + TREE
        with pytest.raises(NixTimeout):
            call(sys.executable, "-c", stubborn, seconds, timeout=0.8)
        assert wait_until(lambda: not running(seconds))


class TestCancellation:
    def test_ends_the_whole_tree(self) -> None:
        """Cancelling from another thread ends the command and its children within moments."""
        seconds = unique_seconds()
        token = Cancellation()
        seen = []

        def cancel() -> None:
            seen.append(wait_until(lambda: bool(running(seconds))))
            token.cancel("enough")

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled, match="enough"):
            call(sys.executable, "-c", TREE, seconds, cancellation=token)
        thread.join()
        assert seen == [True]
        assert wait_until(lambda: not running(seconds))

    def test_starts_nothing_when_cancelled_before(self, tmp_path: Path) -> None:
        """A cancelled call does not even start the command."""
        token = Cancellation()
        token.cancel()
        with pytest.raises(Cancelled):
            call("touch", str(tmp_path / "mark"), cancellation=token)
        assert not (tmp_path / "mark").exists()

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
    def test_an_exception_of_the_listener_ends_the_command(self, kind: type[BaseException]) -> None:
        """What a listener raises arrives at the caller, and the command does not outlive it."""
        seconds = unique_seconds()

        def listen(line: bytes) -> None:
            raise kind

        with pytest.raises(kind):
            run(
                ["sh", "-c", f"echo word >&2; exec sleep {seconds}"],
                os.environ,
                on_line=listen,
                deadline=Deadline.after(20),
                cancellation=Cancellation(),
            )
        assert wait_until(lambda: not running(seconds))

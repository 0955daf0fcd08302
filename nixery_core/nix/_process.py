"""Run one command to its end, or to its death with everything that it started."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import NixError, NixNotFound, NixTimeout
from nixery_core.nix._descendants import descendants, kill

_GRACE = 5.0
_LINGER = 2.0
_TICK = 0.1
_CHUNK = 1 << 16
_MAX_LINE = 1 << 18
_INSTALL = "get it from https://nixos.org/download, or with: apt-get install nix-bin"


@attrs.frozen
class Deadline:
    """When a call, which may be several commands, has to be over."""

    seconds: float | None
    """The limit as the caller gave it; None for none."""
    end: float
    """The same on the monotonic clock."""

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline that many seconds from now."""
        return cls(seconds, float("inf") if seconds is None else time.monotonic() + seconds)


@attrs.frozen
class Finished:
    """A command that ended by itself."""

    returncode: int
    """Its exit code, or the negative number of the signal that killed it."""
    stdout: bytes
    """All of its standard output."""


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    on_line: Callable[[bytes], None],
    deadline: Deadline,
    max_silent: float | None = None,
    cancellation: Cancellation,
) -> Finished:
    """Run *command* with its standard error given line by line to *on_line*.

    However this function ends, nothing that the command started is left running.

    Args:
        command: Program and arguments; no shell.
        environment: The whole environment.
        on_line: Gets each line without its end; what it raises ends the command.
        deadline: Raises NixTimeout when it is over.
        max_silent: Longest time without a line or any output, seconds.
        cancellation: Raises Cancelled soon after it is cancelled.

    Raises:
        NixNotFound: The program cannot be started.
        NixTimeout: It took too long, or said nothing for too long.
        Cancelled: The caller cancelled.
    """
    cancellation.check()
    child = _start(command, environment)
    try:
        stdout = _Output()
        stderr = _Lines(on_line)
        _pump(child, stdout, stderr, deadline, max_silent, cancellation)
        returncode = _reap(child)
    except BaseException:
        _stop(child)
        raise
    finally:
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    return Finished(returncode, stdout.value())


class _Output:
    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def end(self) -> None:
        pass

    def value(self) -> bytes:
        return b"".join(self._chunks)


class _Lines:
    """Cuts a stream into lines; a line beyond all measure arrives in pieces, so memory is bounded."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> None:
        self._rest += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                self._on_line(line)
        if len(self._rest) > _MAX_LINE:
            self.end()

    def end(self) -> None:
        if self._rest:
            line, self._rest = bytes(self._rest), bytearray()
            self._on_line(line)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        reason = f"{command[0]} cannot be started: {os.strerror(error.errno or 0)}"
        raise NixNotFound(f"Nix is not installed, {reason}", hint=_INSTALL) from error
    except OSError as error:
        hint = "name fewer packages at once, or shorter import_args" if error.errno == errno.E2BIG else ""
        raise NixError(f"{command[0]} cannot be started: {os.strerror(error.errno or 0)}", hint=hint) from error
    except ValueError as error:
        raise NixError(f"{command[0]} cannot be started: {error}", hint="an argument holds a NUL character") from error


def _pump(
    child: subprocess.Popen[bytes],
    stdout: _Output,
    stderr: _Lines,
    deadline: Deadline,
    max_silent: float | None,
    cancellation: Cancellation,
) -> None:
    last_output = time.monotonic()
    ended: float | None = None
    with selectors.DefaultSelector() as selector:
        for pipe, sink in ((child.stdout, stdout), (child.stderr, stderr)):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, sink)
        while True:
            now = time.monotonic()
            if selector.get_map():
                ready = selector.select(_TICK)
            else:
                cancellation.wait(0.005)
                ready = []
            for key, _ in ready:
                pipe_file: IO[bytes] = key.fileobj  # type: ignore[assignment]
                chunk = os.read(pipe_file.fileno(), _CHUNK)
                if chunk:
                    last_output = now
                    key.data.feed(chunk)
                else:
                    key.data.end()
                    selector.unregister(key.fileobj)
            cancellation.check()
            if ended is None and _has_ended(child):
                ended = now
            # a daemon that inherited our pipes must not hold us
            if ended is not None and (not selector.get_map() or now - max(ended, last_output) > _LINGER):
                return
            _check_limits(child, now, last_output, deadline, max_silent)


def _check_limits(
    child: subprocess.Popen[bytes], now: float, last_output: float, deadline: Deadline, max_silent: float | None
) -> None:
    name = Path(_program(child)).name
    if now > deadline.end and deadline.seconds is not None:
        raise NixTimeout(
            f"{name} was not ready after {deadline.seconds:g} s",
            seconds=deadline.seconds,
            hint="allow more time: Nix(timeout=...), or build the packages beforehand",
        )
    if max_silent is not None and now - last_output > max_silent:
        raise NixTimeout(
            f"{name} said nothing for {max_silent:g} s", seconds=max_silent, hint="allow more: Nix(max_silent=...)"
        )


def _program(child: subprocess.Popen[bytes]) -> str:
    args = child.args
    return str(args[0]) if isinstance(args, (list, tuple)) else str(args)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        # WNOWAIT leaves the zombie: as long as it is there nobody else gets its number
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        # the program around us ignores SIGCHLD, so the kernel reaps
        return True


def _reap(child: subprocess.Popen[bytes]) -> int:
    _kill_group(child.pid, signal.SIGKILL)
    return child.wait()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the command: politely, so that Nix ends its builders, then with all that it started."""
    if child.returncode is not None:
        return
    below = descendants(child.pid)
    try:
        _kill_group(child.pid, signal.SIGTERM)
        # an evaluation does not listen, and has nothing to put in order
        patience = time.monotonic() + (_GRACE if below else _GRACE / 10)
        while not _has_ended(child) and time.monotonic() < patience:
            # read on, or Nix may wait for us while we wait for it
            _drain(child)
            time.sleep(0.02)
    finally:
        # builders lead sessions of their own, so the group does not hold them
        below |= descendants(child.pid)
        _kill_group(child.pid, signal.SIGKILL)
        child.wait()
        kill(below)


def _drain(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
            try:
                while os.read(pipe.fileno(), _CHUNK):
                    pass
            except BlockingIOError:
                pass


def _kill_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # all have ended, or what is left belongs to a build user and is Nix's to end
        return

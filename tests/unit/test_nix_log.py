"""What Nix prints becomes events and errors."""

from __future__ import annotations

import json
import time

from nixery_core.events import BuildEvent, NixBuildStarted, NixLogLine, NixPhase, NixProgress
from nixery_core.nix._log import TAIL, NixLog

DRV = "/nix/store/h1rxg9jv35279mid8rnpiwbl1wjn4zq9-failing-1.0.drv"


def read(*lines: str | dict[str, object]) -> tuple[NixLog, list[BuildEvent]]:
    events: list[BuildEvent] = []
    log = NixLog(events.append)
    for line in lines:
        log.feed((line if isinstance(line, str) else "@nix " + json.dumps(line)).encode())
    return log, events


def start(identity: int, kind: int, *fields: object) -> dict[str, object]:
    return {"action": "start", "id": identity, "level": 3, "text": "", "type": kind, "fields": list(fields)}


def result(identity: int, kind: int, *fields: object) -> dict[str, object]:
    return {"action": "result", "id": identity, "type": kind, "fields": list(fields)}


class TestEvents:
    def test_a_build_is_told_from_its_start_to_its_log(self) -> None:
        """Start, phase and log lines of a build are events that name its derivation."""
        _, events = read(start(7, 105, DRV, "", 1, 1), result(7, 104, "buildPhase"), result(7, 101, "cc -c x.c"))
        assert events == [
            NixBuildStarted(derivation=DRV),
            NixPhase(derivation=DRV, phase="buildPhase"),
            NixLogLine(derivation=DRV, line="cc -c x.c"),
        ]

    def test_progress_is_told_when_it_changes(self) -> None:
        """Equal progress twice in a row is one event; builds and copies are told apart."""
        _, events = read(
            start(1, 104),
            start(2, 103),
            result(1, 105, 0, 2, 1, 0),
            result(1, 105, 0, 2, 1, 0),
            result(2, 105, 1, 4, 0, 0),
        )
        assert events == [
            NixProgress(activity="build", done=0, expected=2, running=1, failed=0),
            NixProgress(activity="copy", done=1, expected=4, running=0, failed=0),
        ]

    def test_colours_and_secrets_stay_out(self) -> None:
        """Escape sequences and credentials in URLs never reach an event."""
        _, events = read("\x1b[31mcloning\x1b[0m https://me:hunter2@example.org/x\r")
        assert events == [NixLogLine(derivation=None, line="cloning https://***@example.org/x")]

    def test_an_endless_line_takes_no_endless_time(self) -> None:
        """A builder that prints a megabyte without a space costs nothing, and its cut end shows no secret."""
        begin = time.monotonic()
        _, events = read("x" * 1_000_000, "y" * 1990 + " https://me:hunter2@example.org/")
        assert time.monotonic() - begin < 2
        assert [len(event.line) for event in events if isinstance(event, NixLogLine)] == [2000, 1996]
        assert "hunter" not in repr(events)

    def test_chatter_is_left_out(self) -> None:
        """Messages beyond the informational level are no events."""
        _, events = read(
            {"action": "msg", "level": 6, "msg": "querying"}, {"action": "msg", "level": 1, "msg": "warning: x"}
        )
        assert events == [NixLogLine(derivation=None, line="warning: x")]

    def test_stages_are_no_news(self) -> None:
        """The traces by which the expressions tell how far they came are kept, not told."""
        log, events = read({"action": "msg", "level": 0, "msg": "trace: nixery-core: loaded"})
        assert (log.stages, events) == ({"loaded"}, [])


class TestErrors:
    def test_takes_the_bare_message(self) -> None:
        """The message without colours and traces is what an error shows."""
        text = f"builder for '\x1b[35;1m{DRV}\x1b[0m' failed with exit code 3"
        log, events = read({"action": "msg", "level": 0, "msg": f"\x1b[31;1merror:\x1b[0m {text}", "raw_msg": text})
        assert list(log.errors) == [f"builder for '{DRV}' failed with exit code 3"]
        assert events == []

    def test_finds_the_last_error_where_there_is_no_bare_message(self) -> None:
        """In a trace the last error is the cause."""
        log, _ = read({"action": "msg", "level": 0, "msg": "error:\n  … while calling\n\n  error: broken it is"})
        assert list(log.errors) == ["broken it is"]

    def test_keeps_the_last_lines_of_each_build(self) -> None:
        """The tail of one derivation holds none of another's lines, and no more than an error shows."""
        lines = [result(1, 101, f"line {n}") for n in range(60)]
        log, _ = read(start(1, 105, DRV), start(2, 105, "/nix/store/other.drv"), *lines, result(2, 101, "foreign"))
        assert log.build_tail(DRV) == tuple(f"line {n}" for n in range(60 - TAIL, 60))
        assert log.running() == (DRV, "/nix/store/other.drv")

    def test_a_stopped_build_runs_no_more(self) -> None:
        """Only builds that have not stopped are running."""
        log, _ = read(start(1, 105, DRV), {"action": "stop", "id": 1})
        assert log.running() == ()

"""Builds that are killed while they write into a bucket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILL_BUILDS = Path(__file__).resolve().parents[3] / "tests" / "faults" / "kill_builds.py"


def test_killed_builds_leave_nothing_broken(moto) -> None:
    """A dozen here, as many as wanted by tests/faults/kill_builds.py: also amid the upload of a large blob."""
    if not KILL_BUILDS.is_file():
        pytest.skip("tests of the library are not here")
    store = ["--store", f"s3://{moto.new_bucket()}/prefix", "--huge", "17", "18"]
    command = [sys.executable, KILL_BUILDS, "--times", "12", "--json", *store]
    finished = subprocess.run(
        [*command, "--options", json.dumps(moto.options)], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads(finished.stdout)
    assert sum(found["kills"].values()) == 12
    assert set(found["kills"]) == {"time", "parts", "request", "publish"}
    # at least those that die by themselves while they send or publish a large blob
    assert {"stage", "spool"} <= set(found["phases"])
    assert all(found["phases"][turn]["parts are sent"] for turn in ("stage", "spool"))
    assert len({phase for phases in found["phases"].values() for phase in phases}) > 2
    # of those that died before they sent a part the server knew
    assert found["unfinished_uploads"] >= 2
    promises = ("broken", "unlisted", "not_repaired", "different", "left_at_end")
    assert [found[promise] for promise in promises] == [[], [], [], [], []]

"""Builds that are killed while they write into a bucket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILL_BUILDS = Path(__file__).resolve().parents[3] / "tests" / "faults" / "kill_builds.py"


def test_killed_builds_leave_nothing_broken(moto) -> None:
    """Three here, as many as wanted by tests/faults/kill_builds.py."""
    if not KILL_BUILDS.is_file():
        pytest.skip("tests of the library are not here")
    command = [sys.executable, KILL_BUILDS, "--times", "3", "--json", "--store", f"s3://{moto.new_bucket()}/prefix"]
    finished = subprocess.run(
        [*command, "--options", json.dumps(moto.options)], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads(finished.stdout)["kills"] == {"time": 3}

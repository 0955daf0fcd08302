"""Registries that are killed at random: the short version of ``tests/faults``."""

import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).resolve().parents[1] / "faults"


def test_two_registries_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    """Clients get every image whole from one storage, whichever registry dies in the middle of what."""
    result = subprocess.run(
        [sys.executable, FAULTS / "registry_kill.py", "--images", "10", "--kills", "5", "--store", tmp_path / "images"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 images, 5 kills" in result.stdout
    assert "0 lost" in result.stdout

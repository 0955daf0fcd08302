"""Two registries on one bucket, killed at random: the short version of ``tests/faults``, for S3."""

import json
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).resolve().parents[3] / "tests" / "faults"


def test_registries_on_one_bucket_that_are_killed_lose_nothing(moto) -> None:
    """Clients get every image whole, its blobs from the bucket itself, whichever registry dies."""
    store = ["--store", f"s3://{moto.new_bucket()}/images", "--options", json.dumps(moto.options)]
    result = subprocess.run(
        [sys.executable, FAULTS / "registry_kill.py", "--images", "8", "--kills", "4", *store],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 images, 4 kills" in result.stdout
    assert "0 lost" in result.stdout

"""A server that speaks the JSON API of GCS: gcp-storage-emulator."""

from __future__ import annotations

import shutil
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from nixery_core.testing.servers import LOOPBACK, free_port, serving


@attrs.frozen(kw_only=True)
class Server:
    """A server that runs."""

    port: int

    @property
    def options(self) -> dict[str, Any]:
        """What open_backend takes."""
        return self.at(self.port)

    def at(self, port: int) -> dict[str, Any]:
        """Return the options to reach the server through another port, such as that of a proxy."""
        return {"endpoint_url": f"http://{LOOPBACK}:{port}", "token": "anon", "project": "test"}

    def new_bucket(self) -> str:
        """Return the name of a new bucket."""
        name = f"bucket-{uuid.uuid4()}"
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.port}/storage/v1/b?project=test",
            data=f'{{"name": "{name}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()
        return name


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The emulator, which keeps everything in memory."""
    found = shutil.which("gcp-storage-emulator", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.fail("gcp-storage-emulator is not installed: install the dependency group `servers`")
    port = free_port()
    log = tmp_path_factory.mktemp("emulator") / "log"
    command = [found, "start", f"--host={LOOPBACK}", f"--port={port}", "--in-memory"]
    with serving(command, port, log=log):
        yield Server(port=port)

"""S3 servers for the tests: moto, which knows conditions, and rclone, which checks signatures and keeps files."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from s3fs import S3FileSystem

from nixery_core.testing.servers import LOOPBACK, free_port, serving


@attrs.frozen(kw_only=True)
class Server:
    """An S3 server that runs."""

    name: str
    port: int
    key: str
    secret: str

    @property
    def options(self) -> dict[str, Any]:
        """What open_backend takes."""
        return self.at(self.port)

    def at(self, port: int) -> dict[str, Any]:
        """Return the options to reach the server through another port, such as that of a proxy."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": f"http://{LOOPBACK}:{port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def new_bucket(self) -> str:
        """Return the name of a new bucket."""
        name = f"bucket-{uuid.uuid4()}"
        self.fs().call_s3("create_bucket", Bucket=name)
        return name

    def fs(self) -> S3FileSystem:
        """Return a plain file system of s3fs, to look at the server with."""
        return S3FileSystem(**self.options, use_listings_cache=False)


def program(name: str) -> Path:
    """Return a program of the environment that the tests run in."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: install the dependency group `servers`")
    return Path(found)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of moto."""
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    with serving([program("moto_server"), "-H", LOOPBACK, "-p", str(port)], port, log=log):
        yield Server(name="moto", port=port, key="testing", secret="testing-secret")


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The S3 server of rclone over a folder."""
    port = free_port()
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "data").mkdir()
    server = Server(name="rclone", port=port, key="lab", secret="lab-secret-key")
    command = [
        program("rclone"),
        "serve",
        "s3",
        "--addr",
        f"{LOOPBACK}:{port}",
        "--auth-key",
        f"{server.key},{server.secret}",
        "--vfs-cache-mode",
        "off",
        "--config",
        str(folder / "none.conf"),
        folder / "data",
    ]
    with serving(command, port, log=folder / "log"):
        yield server


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found

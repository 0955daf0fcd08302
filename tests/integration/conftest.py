"""What the integration tests need of the machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_nix

DEBIAN_PACKAGES = Path(__file__).resolve().parents[1] / "debian-packages"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: needs Nix, containers or registries on this machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, whatever its own marks are."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


def _require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """A function that skips the test where a tool is missing; in CI a missing tool is a failure."""
    return _require


@pytest.fixture(scope="session")
def nix_binaries() -> Path | None:
    """The folder of the Nix to test with, NIXERY_TEST_NIX_BIN; None for the one in PATH."""
    folder = os.environ.get("NIXERY_TEST_NIX_BIN")
    if folder:
        return Path(folder)
    _require("nix", "nix-instantiate", "nix-store")
    return None


@pytest.fixture(scope="session")
def nix(nix_binaries: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nix]:
    """A Nix with a store and a cache of its own for the whole session, which builds the demo."""
    # a space in the path, because somebody will have one
    root = tmp_path_factory.mktemp("nix store")
    environment = {"XDG_CACHE_HOME": str(root / "cache"), "NIX_USER_CONF_FILES": "", "NIX_PATH": ""}
    yield attrs.evolve(demo_nix(root / "store"), binaries=nix_binaries, environment=environment, timeout=300)
    # Nix takes the write permission away from all it stores
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o700)


@pytest.fixture(scope="session")
def debian_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package set of real programs, made from the Debian packages of this machine."""
    _require("dpkg", "patchelf", "busybox", "readelf")
    if platform.machine() != "x86_64":
        pytest.skip("the Debian package set is made for x86_64")
    folder = tmp_path_factory.mktemp("debian") / "packages"
    shutil.copytree(DEBIAN_PACKAGES, folder)
    if subprocess.run([sys.executable, folder / "gen.py", "--fits"], check=False).returncode != 0:
        described = subprocess.run([sys.executable, folder / "gen.py"], check=True, capture_output=True).stdout
        (folder / "debian.json").write_bytes(described)
    return folder


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function that calls podman, set up for machines with few privileges, and returns what it prints."""
    _require("podman", "runc")
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\nnetns = "none"\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
    )
    settings = {"CONTAINERS_CONF": f"{folder}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf"}

    def call(*words: str) -> str:
        result = subprocess.run(
            ["podman", *words], env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"podman {words} failed:\n{result.stdout}{result.stderr}"
        return result.stdout

    return call

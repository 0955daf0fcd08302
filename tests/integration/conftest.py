"""What the integration tests need of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_nix, demo_path

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
        _lack(f"not installed: {', '.join(missing)}")


def _lack(reason: str) -> None:
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


class Server:
    """A running ``nixery-core serve``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("serving"), first + log.read_text()
        self.said = [first]
        self._reader = threading.Thread(target=lambda: self.said.extend(process.stdout or ()), daemon=True)
        self._reader.start()
        found = re.search(r" at (https?://\S+)$", first.strip())
        assert found is not None
        self.url = found[1]
        self.address = self.url.partition("://")[2]

    def get(self, path: str, **named: Any) -> bytes:
        """Return the body of an answer; raises HTTPError."""
        with urllib.request.urlopen(self.url + path, timeout=60, **named) as answer:
            body: bytes = answer.read()
            return body

    def wait(self, path: str = "/healthz", **named: Any) -> bytes:
        """Return the first answer, as soon as there is one."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.get(path, **named)
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all that has *labels*."""
        families = text_string_to_metric_families(self.get("/metrics").decode())
        samples = [sample for family in families for sample in family.samples]
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@pytest.fixture(scope="session")
def serving(nix: Nix) -> Callable[..., AbstractContextManager[Server]]:
    """A function that runs ``nixery-core serve`` with images in *folder* while its ``with`` lasts.

    Unless told otherwise it serves the demo, at a free port.
    """

    @contextmanager
    def serve(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
        command = [sys.executable, "-m", "nixery_core", "serve", "--store", str(folder / "images"), *options]
        words = [word for pair in nix.options.items() for word in ("--nix-option", *pair)]
        settings = {"PATH": os.environ["PATH"], "HOME": str(folder), **nix.environment, **(environment or {})}
        if nix.binaries is not None:
            settings["PATH"] = f"{nix.binaries}:{settings['PATH']}"
        if "--source" not in options and not any(name.startswith("NIXERY_") for name in settings):
            command += ["--source", str(demo_path())]
        if "--port" not in options and "PORT" not in settings:
            command += ["--port", "0"]
        log = folder / f"serve-{uuid.uuid4().hex[:8]}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*command, "--nix-store", str(nix.store), *words],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=settings,
                cwd=folder,
            )
        try:
            yield Server(process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    return serve


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


@contextmanager
def _daemon(*command: object, socket: Path, log: Path) -> Iterator[None]:
    """Run a program until the end of the block, which begins when it has made its *socket*."""
    words = [str(word) for word in command]
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Make sure that at the end of the block nothing is mounted in *folder*, and no process has to do with it."""
    yield
    left = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{folder}/" in line]
    for place in reversed(left):
        subprocess.run(["umount", "--lazy", place], check=True)
    assert left == []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert str(folder).encode() not in process.read_bytes()


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a containerd with a folder of its own."""
    _require("containerd", "runc")
    folder = tmp_path_factory.mktemp("containerd")
    config, socket = folder / "config.toml", folder / "s.sock"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\noom_score = 0\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{socket}"\n'
    )
    with _nothing_left(folder), _daemon("containerd", "--config", config, socket=socket, log=folder / "log"):
        yield socket


@pytest.fixture(scope="session")
def docker(containerd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A function that calls docker with an engine of its own, and returns what it prints.

    The engine pulls from registries of this machine; its containers have no network.
    """
    _require("docker", "dockerd")
    if os.geteuid() != 0:
        _lack("dockerd needs root")
    folder = tmp_path_factory.mktemp("docker")
    (folder / "daemon.json").write_text("{}")
    command: list[object] = ["dockerd", "--host", f"unix://{folder}/s.sock", "--containerd", containerd]
    command += ["--config-file", folder / "daemon.json", "--pidfile", folder / "pid", "--log-level=warn"]
    command += ["--data-root", folder / "root", "--exec-root", folder / "state"]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    settings |= {"DOCKER_HOST": f"unix://{folder}/s.sock", "DOCKER_CONFIG": str(folder / "client")}

    def call(*words: object, stdin: str = "") -> str:
        result = subprocess.run(
            ["docker", *map(str, words)],
            env=settings,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 0, f"docker {words} failed:\n{result.stdout}{result.stderr}"
        return result.stdout

    # an engine of before 23 leaves a key there, wherever the rest is
    key = Path("/etc/docker/key.json")
    had_key = key.exists()
    try:
        with _nothing_left(folder), _daemon(*command, socket=folder / "s.sock", log=folder / "log"):
            yield call
    finally:
        if not had_key:
            key.unlink(missing_ok=True)


@pytest.fixture
def registry(tmp_path: Path, require) -> Iterator[str]:
    """A docker-registry on a free port; its address."""
    require("docker-registry", "skopeo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\nhttp: {{addr: {address}}}\n"
    )
    process = subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL)
    try:
        host, port = address.split(":")
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()

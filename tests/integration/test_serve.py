"""`nixery-core serve` as a process: real clients, real Nix, and signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from nixery_core.nix.demo import demo_path
from nixery_core.storage.layout import list_refs
from nixery_core.storage.plugins import open_backend


def staged(folder):
    backend = open_backend(folder / "images")
    return [info.key for prefix in ("staging/", "leases/") for info in backend.list(prefix)]


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class TestServing:
    def test_the_commands_it_prints_work(self, tmp_path, serving, require):
        """The command for skopeo that is printed at the start pulls an image that nobody has built before."""
        require("skopeo")
        with serving(tmp_path, "--warm-up", "welcome") as server:
            server.wait()
            time.sleep(0.2)
            (command,) = [line for line in server.said if line.strip().startswith("skopeo")]
            assert "--src-tls-verify=false" in command
            command = command.replace("skopeo copy", "skopeo --insecure-policy copy")
            subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=120)
            assert (tmp_path / "image" / "index.json").is_file()
            assert any("daemon.json" in line or "takes it from this machine" in line for line in server.said)
            assert server.metric("nixery_builds_total", result="built") >= 1
            assert server.metric("nixery_http_requests_total", route="blob", status="200") >= 1
            assert server.stop() == 0
        lines = server.lines()
        assert any(line["message"] == "warm-up: welcome:latest is there" for line in lines)
        pulled = [line for line in lines if line.get("path") == "/v2/welcome/manifests/latest"]
        assert pulled[0]["status"] == 200
        assert re.fullmatch("[0-9a-f]{32}", pulled[0]["request_id"])
        assert staged(tmp_path) == []

    def test_what_is_served_is_counted(self, tmp_path, serving):
        """--count-served writes what clients pulled, to the last, when it stops; popcount makes a file of it."""
        with serving(tmp_path, "--count-served", "--warm-up", "welcome") as server:
            server.wait()
            for name in ("hello", "hello", "lookup"):
                server.wait(f"/v2/{name}/manifests/latest")
            assert server.stop() == 0
        output = tmp_path / "popularity.json"
        command = [sys.executable, "-m", "nixery_core", "popcount", "--served", tmp_path / "images", "--output", output]
        subprocess.run(command, check=True, capture_output=True)
        document = json.loads(output.read_bytes())
        assert document["metadata"] == {"images_served": 3, "unknown_images": 0}
        assert document["counts"] == {"alphabet": 3, "dictionary": 3, "greeting": 2, "hello": 2, "lookup": 1}

    def test_nixerys_environment(self, tmp_path, serving):
        """A deployment of Nixery starts with its variables alone."""
        port = free_port()
        environment = {
            "PORT": str(port),
            "NIXERY_PKGS_PATH": str(demo_path()),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(tmp_path / "elsewhere"),
            "NIX_TIMEOUT": "300",
        }
        with serving(tmp_path, "--store", "", environment=environment) as server:
            assert server.address == f"127.0.0.1:{port}"
            server.wait()
            assert json.loads(server.get("/v2/hello/manifests/latest"))["layers"]
            assert (tmp_path / "elsewhere" / "oci-layout").is_file()
            assert server.stop(signal.SIGINT) == 0

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--source", "demo", "--store", "nowhere://x"], "no backend knows the scheme"),
            (["--source", "demo", "--store", "x", "--codec", "rar"], "rar"),
            (["--source", "demo", "--store", "x", "--warm-up", "A"], "A"),
            (["--source", "demo", "--store", "x", "--host", "192.0.2.1"], "nothing can listen at 192.0.2.1"),
            (["--source", "demo", "--store", "x", "--tls-cert", "no.pem", "--tls-key", "no.pem"], "no file no.pem"),
            (["--store", "x"], "no package source is set"),
        ],
    )
    def test_what_cannot_work_is_refused_at_once(self, tmp_path, options, problem):
        """A wrong setting ends the command with an error, before it listens, and nothing is created."""
        command = [sys.executable, "-m", "nixery_core", "serve", "--port", "0", *options]
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode in (2, 7)
        assert problem in ended.stderr
        assert "Traceback" not in ended.stderr
        assert list(tmp_path.iterdir()) == []

    def test_tls(self, tmp_path, serving, require):
        """With a certificate the registry speaks TLS, and says so in the commands that it prints."""
        require("openssl")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        command += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem"
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
        options = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
        with serving(tmp_path, *options) as server:
            assert server.url.startswith("https://")
            trust = ssl.create_default_context(cafile=tmp_path / "cert.pem")
            server.wait("/v2/", context=trust)
            time.sleep(0.2)
            assert not any("tls-verify" in line for line in server.said)
            assert server.stop() == 0


class TestStopping:
    def test_a_running_build_is_finished(self, tmp_path, serving):
        """SIGTERM while an image is built: the client that waits gets it, and the command ends with 0."""
        with serving(tmp_path) as server:
            server.wait()
            answers = []
            client = threading.Thread(target=lambda: answers.append(server.get("/v2/toolbox/manifests/latest")))
            client.start()
            _until(lambda: server.metric("nixery_builds_running") == 1)
            assert server.stop() == 0
            client.join(30)
        assert json.loads(answers[0])["layers"]
        assert [name for name, _, _ in list_refs(open_backend(tmp_path / "images"))] == ["toolbox"]
        assert staged(tmp_path) == []

    def test_one_that_takes_too_long_is_handed_back(self, tmp_path, serving):
        """After the time for stopping the build is cancelled, and nothing is left: no process, no lease, no blob."""
        with serving(tmp_path, "--stop-timeout", "1", "--patience", "0.5") as server:
            server.wait()
            with pytest.raises(urllib.error.HTTPError, match="429"):
                server.get("/v2/sleeps/manifests/latest")
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 15
        assert any(line.get("state") == "cancelled" for line in server.lines())
        assert staged(tmp_path) == []
        backend = open_backend(tmp_path / "images")
        assert list(backend.list("blobs/")) == []
        assert list(list_refs(backend)) == []


class TestProcesses:
    def test_several_processes_are_one_registry(self, tmp_path, serving):
        """Workers share the port, the builds and the numbers; SIGTERM stops them all."""
        with serving(tmp_path, "--workers", "2", "--port", str(free_port())) as server:
            server.wait()
            _until(lambda: server.metric("nixery_processes") == 2)
            for _ in range(10):
                server.get("/v2/hello/manifests/latest")
            assert server.metric("nixery_http_requests_total", route="manifest", status="200") == 10
            pids = {line["message"] for line in server.lines() if line["message"].startswith("Started server process")}
            assert len(pids) == 2
            assert server.stop() == 0
        assert staged(tmp_path) == []


class TestOtherServers:
    @pytest.mark.parametrize("name", ["uvicorn", "granian", "hypercorn"])
    def test_the_application_runs_on(self, tmp_path, nix, name):
        """The factory of the documentation serves on each server that it names."""
        port = free_port()
        factory = "nixery_core.cli.serve.service:application"
        commands = {
            "uvicorn": ["uvicorn", "--factory", factory, "--port", str(port)],
            "granian": ["granian", "--interface", "asgi", "--factory", factory, "--port", str(port)],
            "hypercorn": ["hypercorn", f"{factory}()", "--bind", f"127.0.0.1:{port}"],
        }
        program = Path(sys.executable).parent / commands[name][0]
        if not program.exists():
            pytest.skip(f"not installed: {name}")
        settings = {
            "PATH": os.environ["PATH"],
            "NIXERY_PKGS_PATH": str(demo_path()),
            "NIXERY_STORE": str(tmp_path / "images"),
            "NIXERY_NIX_STORE": nix.store,
            "NIXERY_NIX_OPTIONS": json.dumps(dict(nix.options)),
            **nix.environment,
        }
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [program, *commands[name][1:]], env=settings, stdout=log, stderr=log, cwd=tmp_path
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _until(lambda: _answers(f"{url}/healthz"), process, tmp_path / "log")
            with urllib.request.urlopen(f"{url}/v2/hello/manifests/latest", timeout=60) as answer:
                manifest = json.load(answer)
            for layer in manifest["layers"]:
                with urllib.request.urlopen(f"{url}/v2/hello/blobs/{layer['digest']}", timeout=60) as answer:
                    assert len(answer.read()) == layer["size"]
            process.terminate()
            assert process.wait(30) in (0, -signal.SIGTERM, 143)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _until(condition, process=None, log=None, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it takes too long"
        assert process is None or process.poll() is None, log.read_text()
        time.sleep(0.05)


def test_granian_and_hypercorn_are_tested_in_ci():
    """Where CI is set, no server of the documentation is left out."""
    if os.environ.get("CI"):
        assert all(shutil.which(name, path=str(Path(sys.executable).parent)) for name in ("granian", "hypercorn"))

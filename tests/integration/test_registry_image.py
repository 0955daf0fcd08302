"""The registry in a container that the library itself has built, serving images without Nix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.index.document import index_bytes
from nixery_core.model.image import ImageSpec
from nixery_core.model.platform import AMD64
from nixery_core.sources import LocalPath
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.servers import free_port

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "howto" / "registry-image.md"


def documented():
    """Return the functions of the guide: what it says is what is tested."""
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """What pip installs of the library and what it needs."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, "-c", CHECKOUT / "constraints.txt"]
    subprocess.run([*command, f"{CHECKOUT}[server,cache]"], check=True, timeout=300)
    return folder


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the Python of the Debian packages is 3.11")
def test_it_builds_itself_and_others(tmp_path, nix, debian_packages, packages, podman, require):
    """The image of the guide runs, builds an image from a binary cache when it is pulled, and stops in good order."""
    require("podman", "skopeo")
    source, images = LocalPath(debian_packages), open_backend(tmp_path / "images")
    built = ImageBuilder(source, images, realiser=nix, codec="zstd:1").build(documented()["registry_spec"](packages))
    assert built.config.config.stop_signal == "SIGTERM"
    # what clients will ask for: a binary cache with one package, made by Nix
    cache, index = tmp_path / "cache", tmp_path / "cache" / "index.json"
    program = str(nix.binaries / "nix") if nix.binaries else "nix"
    pin = source.pin("latest")
    packages_of_set = nix.evaluate(pin, ["hello"], [], AMD64)
    options = [word for pair in nix.options.items() for word in ("--option", *pair)]
    with nix.realise(packages_of_set) as realisation:
        paths = [str(info.path) for info in realisation.closure]
        command = [program, "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", *options]
        where = ["--store", nix.store, "--to", f"file://{cache}?compression=zstd"]
        environment = {**os.environ, **nix.environment}
        subprocess.run([*command, *where, *paths], check=True, env=environment, timeout=120)
        expected = ImageBuilder(source, open_backend(tmp_path / "here"), realiser=nix).build(
            # the index has nothing else
            ImageSpec.parse("hello", implied=())
        )
    described = dict(nix.index(pin, AMD64))
    index.write_bytes(index_bytes({AMD64.system: {"hello": described["hello"]}}))
    (tmp_path / "store").mkdir()

    port = free_port()
    run = ["run", "-d", "--name", "registry", "--log-driver", "k8s-file", "--network=host", "-v", f"{cache}:/cache:ro"]
    run += ["-v", f"{tmp_path}/store:/store", f"oci:{tmp_path}/images:nixery-core:latest"]
    serve = ["--source", "cache:/cache#/cache/index.json", "--allow-unsigned", "--store", "/store", "--port", str(port)]
    podman(*run, *serve, "--host", "127.0.0.1")
    try:
        _until_it_answers(f"http://127.0.0.1:{port}/readyz", podman)
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
        subprocess.run(
            [*copy, f"docker://127.0.0.1:{port}/hello", f"oci:{tmp_path}/pulled:hello"], check=True, timeout=120
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui/names?q=hel", timeout=10) as answer:
            assert json.load(answer) == {"names": ["hello"]}
        podman("stop", "-t", "30", "registry")
        assert podman("inspect", "--format", "{{.State.ExitCode}}", "registry").strip() == "0"
    finally:
        podman("rm", "-f", "registry")
    # Python in a container without Nix makes what Nix made here
    found = json.loads((tmp_path / "pulled" / "index.json").read_text())["manifests"][0]
    manifest = json.loads((tmp_path / "pulled" / "blobs" / "sha256" / found["digest"].partition(":")[2]).read_text())
    layers = [layer["digest"] for layer in manifest["layers"]]
    assert layers == [str(layer.descriptor.digest) for layer in expected.layers]


def _until_it_answers(url, podman):
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, podman("inspect", "registry") + podman("logs", "registry")
            time.sleep(0.2)

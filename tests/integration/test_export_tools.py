"""Exported images in the hands of the tools that they are made for."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_core import Image, ImageBuilder, ImageSpec, open_backend
from nixery_core.export import FORMATS, export_image, write_file_atomically
from nixery_core.model.image import CustomFile
from nixery_core.model.oci import ContainerConfig
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser
from nixery_core.testing.memory_store import Executable, SymbolicLink

BUSYBOX = StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-busybox-1")
APPLETS = ("sh", "env", "cat", "id", "ls", "stat", "echo", "readlink")
NAME = "busybox"
SCRIPT = "id -un; echo $HOME; stat -c '%a %U' ~ /tmp; readlink /usr/bin/env; stat -c '%a %u %g' long-*; cat /srv/link"
PRINTED = ["app", "/home/app", "700 app", "1777 root", f"{BUSYBOX}/bin/env", "640 1000 3000000", "custom"]


class OneRevision:
    """A package source that never moves."""

    def pin(self, tag: str) -> Pin:
        return Pin(kind="memory", url="memory", revision="1", fetch={})


def run(*command: object, **options: object) -> str:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=120, **options
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(params=["gzip", "zstd"])
def image(request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]) -> tuple[Image, object]:
    """An image with a shell that runs anywhere, and the storage that it is in."""
    require("busybox")
    program = Path(shutil.which("busybox")).read_bytes()
    tree = {"bin": {"busybox": Executable(program), **{name: SymbolicLink("busybox") for name in APPLETS}}}
    realiser = MemoryRealiser({"busybox": MemoryPackage(path=BUSYBOX, tree=tree)})
    backend = open_backend(tmp_path / "store")
    spec = ImageSpec.parse(
        NAME,
        config=ContainerConfig(user="app", working_dir="/srv/größe"),
        files=[
            CustomFile(path="/srv/größe/" + "long-" * 30, content=b"custom\n", mode=0o640, uid=1000, gid=3_000_000),
            CustomFile(path="/srv/link", target="größe/" + "long-" * 30),
        ],
    )
    return ImageBuilder(OneRevision(), backend, realiser=realiser, codec=request.param).build(spec), backend


def export(image: tuple[Image, object], archive_format: str, path: Path) -> Path:
    built, backend = image
    with write_file_atomically(path) as file:
        export_image(built.descriptor, backend, format=archive_format, reference=f"{NAME}:latest", write=file.write)
    return path


@pytest.mark.parametrize("archive_format", FORMATS)
def test_skopeo_copies_and_inspects_it(image, archive_format, tmp_path, require):
    """Skopeo reads the archive, checks every digest in it, and finds the image's platform and layers."""
    require("skopeo")
    built, _ = image
    path = export(image, archive_format, tmp_path / "image.tar")
    run("skopeo", "--insecure-policy", "copy", "-q", f"{archive_format}:{path}:{NAME}:latest", f"dir:{tmp_path}/copy")
    found = json.loads(run("skopeo", "inspect", "--config", f"{archive_format}:{path}:{NAME}:latest"))

    assert found == built.config.to_json()
    layers = json.loads((tmp_path / "copy/manifest.json").read_bytes())["layers"]
    expected = built.config.rootfs.diff_ids if archive_format == "docker-archive" else built.manifest.layers
    assert len(layers) == len(expected)
    if archive_format == "oci-archive":
        assert [layer["digest"] for layer in layers] == [str(layer.digest) for layer in built.manifest.layers]


@pytest.mark.parametrize("image", ["gzip"], indirect=True)  # umoci 0.4 knows no other compression
def test_umoci_unpacks_the_oci_archive(image, tmp_path, require):
    """The unpacked root filesystem has the modes, links and contents that were asked for."""
    require("umoci")
    layout = tmp_path / "layout"
    with tarfile.open(export(image, "oci-archive", tmp_path / "image.tar")) as archive:
        archive.extractall(layout, filter="data")
    run("umoci", "unpack", "--rootless", "--image", f"{layout}:{NAME}:latest", tmp_path / "bundle")
    root = tmp_path / "bundle/rootfs"

    assert (root / "bin/sh").readlink() == Path(f"{BUSYBOX}/bin/sh")
    assert (root / "srv/link").read_text() == "custom\n"
    assert [(root / name).stat().st_mode & 0o7777 for name in ("tmp", "home/app", "root")] == [0o1777, 0o700, 0o700]


@pytest.mark.parametrize("archive_format", FORMATS)
def test_podman_loads_and_runs_it(image, archive_format, tmp_path, podman):
    """The loaded image has its name, and runs as its user with a home, a temporary directory and its custom files."""
    path = export(image, archive_format, tmp_path / "image.tar")
    loaded = podman("load", "-q", "-i", path)
    lines = podman("run", "--rm", f"localhost/{NAME}:latest", "sh", "-c", SCRIPT).splitlines()

    assert f"localhost/{NAME}:latest" in loaded
    assert lines == PRINTED


def test_docker_loads_and_runs_it(image, tmp_path, docker):
    """`docker load` finds the name and every layer, and the image runs as its user with its files."""
    built, _ = image
    path = export(image, "docker-archive", tmp_path / "image.tar")
    loaded = docker("load", "-i", path)
    layers = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", f"{NAME}:latest"))
    lines = docker("run", "--rm", "--network=none", f"{NAME}:latest", "sh", "-c", SCRIPT).splitlines()

    assert f"Loaded image: {NAME}:latest" in loaded
    assert layers == [str(diff_id) for diff_id in built.config.rootfs.diff_ids]
    assert lines == PRINTED


def test_gnu_tar_lists_it(image, tmp_path):
    """GNU tar, too, finds nothing odd in the archive."""
    path = export(image, "docker-archive", tmp_path / "image.tar")
    listed = run("tar", "tvf", path).splitlines()

    assert all(line.startswith("-rw-r--r-- 0/0") for line in listed)

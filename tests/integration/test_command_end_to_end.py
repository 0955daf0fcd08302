"""The command nixery-core with real Nix: what it builds, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_core import Nix

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path, nix: Nix) -> Command:
    """A function that runs ``nixery-core build`` in an empty folder, with the storage ``images`` there."""

    def build(*words: str, source: str = "demo", store: str = "images") -> subprocess.CompletedProcess[str]:
        settings = [word for option in nix.options.items() for word in ("--nix-option", *option)]
        return subprocess.run(
            [
                *(sys.executable, "-m", "nixery_core", "build", *words, "--source", source, "--store", store),
                *("--nix-store", str(nix.store), *settings),
            ],
            cwd=tmp_path,
            env={**os.environ, **nix.environment},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    return build


class TestBuild:
    def test_names_to_an_archive(self, tmp_path, command, require):
        """One command makes an image that other tools read, in the storage and as a file."""
        require("skopeo")
        result = command("hello", "--json", "--output", "docker-archive:hello.tar")
        document = json.loads(result.stdout)
        for image in ("oci:images:hello:latest", "docker-archive:hello.tar"):
            inspect = ["skopeo", "inspect", "--config", image]
            shown = subprocess.run(inspect, cwd=tmp_path, capture_output=True, text=True, check=True)
            diff_ids = json.loads(shown.stdout)["rootfs"]["diff_ids"]
            assert diff_ids == [layer["diff_id"] for layer in document["layers"]]

    def test_an_archive_on_stdout(self, command):
        """The image can go into a pipe, and nothing else goes with it."""
        result = command("hello", "--output", "oci-archive:-")
        assert result.returncode == 0
        assert "oci-layout" in result.stdout
        assert "is stored" not in result.stdout

    def test_unfree_packages_when_allowed(self, command):
        """--allow-unfree reaches the package set."""
        assert command("unfree", "--allow-unfree").returncode == 0

    def test_upper_case_and_digits_are_reached(self, command):
        """What image names cannot spell is found by its lower-case name, without the underscore."""
        result = command("upper/1name/demopackages.inner", "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["name"] == "upper/1name/demopackages.inner"

    def test_collisions_are_said(self, command):
        """Two packages with a file of one name: which of them is linked is told."""
        result = command("editor-small/editor-large")
        assert result.returncode == 0
        assert "collision at" in result.stderr


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "code", "texts"),
        [
            (["helo", "broken", "gretting"], 4, ["did you mean hello?", "did you mean greeting?", "marked as broken"]),
            (["unfree"], 4, ["unfree license", "allowUnfree"]),
            (["fails"], 5, ["-fails-1.0.drv", "> about to fail", "--read-log"]),
            (["sleeps", "--timeout", "2"], 6, ["2 s", "sleeps-1.0.drv", "> now I sleep"]),
            (["sleeps", "--max-silent-time", "1"], 6, ["silence", "> now I sleep"]),
            (["Hello"], 2, ["not an image name", "lower-case"]),
            (["hello", "--tag", "a/b"], 2, ["not a tag"]),
            (["hello", "--tag", "v1"], 2, ["has no tags"]),
            (["hello", "--platform", "amd46"], 2, ["not a known platform"]),
            (["hello", "--codec", "gzpi"], 2, ["did you mean gzip?"]),
            (["hello", "--budget", "125"], 2, ["more than 125", "the customisation layer", "at most 124"]),
            (["hello", "--env", "X"], 2, ["NAME=value"]),
        ],
    )
    def test_bad_input_is_told_and_leaves_nothing(self, tmp_path, command, words, code, texts):
        """Every kind of failure has its exit code, says what to do, and stores nothing."""
        result = command(*words)
        assert result.returncode == code, result.stderr
        for text in texts:
            assert text in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert not (tmp_path / "images").exists()

    @pytest.mark.parametrize(
        ("source", "code", "text"),
        [
            ("./nowhere", 3, "cannot be read: No such file"),
            ("git:./nowhere", 3, "does not appear to be a git repository"),
            ("git:https://user:hunter2@127.0.0.1:1/set", 3, "https://***@127.0.0.1:1/set"),
            ("nowhere", 2, "not a package source"),
        ],
    )
    def test_sources_that_cannot_be_read(self, command, source, code, text):
        """A source that is not there is told with its place, and no secret of it."""
        result = command("hello", source=source)
        assert result.returncode == code
        assert text in result.stderr
        assert "hunter2" not in result.stderr

    @pytest.mark.parametrize(
        ("store", "code", "text"),
        [
            ("s4://bucket/images", 7, "no backend knows the scheme"),
            ("/proc/images", 7, "/proc/images"),
        ],
    )
    def test_storage_that_cannot_be_used(self, command, store, code, text):
        """A storage of an unknown scheme, or one that cannot be written, is told with its URL."""
        result = command("hello", store=store)
        assert result.returncode == code
        assert text in result.stderr

    def test_a_machine_without_nix(self, tmp_path):
        """Where Nix is missing, one line says so and how to get it."""
        result = subprocess.run(
            [sys.executable, "-m", "nixery_core", "demo", "--nix", "--progress", "none"],
            cwd=tmp_path,
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 8
        (line,) = result.stderr.splitlines()
        assert "Nix is not installed" in line
        assert "apt-get install nix-bin" in line

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
    def test_a_full_disk(self, tmp_path, command, require):
        """Where the storage is full, the exit code says so and nothing half-written is left."""
        require("mount", "umount")
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip("this machine lets nobody mount a tmpfs")
        try:
            (tmp_path / "noise").write_bytes(os.urandom(1 << 20))
            result = command("hello", "--file", "noise:/noise", store=f"{small}/images")
            left = [path for path in small.rglob("*") if path.is_file()]
        finally:
            subprocess.run(["umount", str(small)], check=True)
        assert result.returncode == 7
        assert "No space left" in result.stderr
        assert not [path for path in left if "staging" in path.parts]
        assert not [path for path in left if "refs" in path.parts]

"""The demo package set is built, and its programs run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nixery_core.errors import NixBuildError, PackageError
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import AMD64, ARM64, Platform
from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_path
from nixery_core.sources import LocalPath
from nixery_core.stores.realiser import Realisation

GOOD = (
    "alphabet", "dictionary", "greeting", "phrasebook", "hello", "welcome", "lookup", "toolbox", "editor-small",
    "editor-large", "upper", "1name", "demopackages.inner",
)  # fmt: skip
HOST = {"x86_64": AMD64, "aarch64": ARM64}.get(platform.machine())


@contextmanager
def realised(
    nix: Nix, *names: str, target: Platform = AMD64, optional: tuple[str, ...] = (), **import_args: Any
) -> Iterator[tuple[dict[str, ResolvedPackage], Realisation]]:
    pin = LocalPath(demo_path(), import_args=import_args).pin("latest")
    packages = nix.evaluate(pin, names, optional, target)
    with nix.realise(packages) as realisation:
        yield {package.attribute: package for package in packages}, realisation


def run_in_closure(folder: Path, realisation: Realisation, program: str, *arguments: str) -> str:
    """Run a program where there is nothing but its closure."""
    (folder / "nix/store").mkdir(parents=True)
    for info in realisation.closure:
        entry = Path(realisation.reader.store_dir) / info.path.base  # type: ignore[attr-defined]
        copy = shutil.copytree if entry.is_dir() else shutil.copy2
        copy(entry, folder / "nix/store" / info.path.base, **({"symlinks": True} if entry.is_dir() else {}))
    command = ["unshare", "--map-root-user", "--mount", "chroot", str(folder), program, *arguments]
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
        ).stdout
    finally:
        for parent, _, _ in os.walk(folder):
            Path(parent).chmod(0o700)


class TestDemo:
    @pytest.mark.parametrize("target", [AMD64, ARM64], ids=str)
    def test_builds_for_every_platform_on_any(self, nix: Nix, target: Platform) -> None:
        """All good packages build for both platforms, and each program is of its platform."""
        with realised(nix, *GOOD, target=target) as (packages, realisation):
            assert {"Upper", "_1name", "demoPackages.inner", "hello"} <= set(packages)
            hello = packages["hello"].outputs[0].path
            head = realisation.reader.read_head(hello, b"bin/hello", 20)
            assert int.from_bytes(head[18:20], "little") == target.elf_machine
            references = {path.package_name for path in realisation.closure[hello].references}
            assert references == {"greeting"}

    def test_hello_runs_with_nothing_but_its_closure(self, nix: Nix, tmp_path: Path, require) -> None:
        """The program really says hello in a root that holds only its three store paths."""
        require("unshare", "chroot")
        if HOST is None:
            pytest.skip(f"no demo programs for {platform.machine()}")
        with realised(nix, "hello", target=HOST) as (packages, realisation):
            assert len(realisation.closure) == 4
            program = f"{packages['hello'].outputs[0].path}/bin/hello"
            assert run_in_closure(tmp_path / "root", realisation, program) == "Hello, world!\n"

    def test_busybox_runs_where_the_machine_has_one(self, nix: Nix, tmp_path: Path, require) -> None:
        """The packages of the meta-package `shell` are real programs."""
        require("busybox", "unshare", "chroot")
        assert HOST is not None
        with realised(nix, "bashInteractive", "coreutils", target=HOST) as (packages, realisation):
            program = f"{packages['bashInteractive'].outputs[0].path}/bin/bash"
            script = (
                f"{packages['coreutils'].outputs[0].path}/bin/seq 3 | {packages['coreutils'].outputs[0].path}/bin/wc -l"
            )
            assert run_in_closure(tmp_path / "root", realisation, program, "-c", script) == "3\n"

    def test_outputs_priorities_and_self_references(self, nix: Nix) -> None:
        """The set shows what image builders have to get right."""
        with realised(nix, "toolbox", "editor-small", "editor-large") as (packages, realisation):
            assert [output.name for output in packages["toolbox"].outputs] == ["out", "man"]
            assert packages["editor-small"].priority < packages["editor-large"].priority
            editor = packages["editor-small"].outputs[0].path
            assert editor in realisation.closure[editor].references

    def test_problems_have_their_kinds(self, nix: Nix) -> None:
        """What nixpkgs refuses is refused here in the same words, all at once."""
        with pytest.raises(PackageError) as caught, realised(nix, "broken", "unfree", "insecure", "unsupported"):
            pass
        kinds = {problem.name: problem.kind.value for problem in caught.value.problems}
        assert kinds == {
            "broken": "broken", "unfree": "unfree", "insecure": "insecure", "unsupported": "unsupported-platform"
        }  # fmt: skip

    def test_what_is_allowed_is_built(self, nix: Nix) -> None:
        """The configuration of the set allows what it refuses by itself."""
        config = {"allowUnfree": True, "allowBroken": True, "permittedInsecurePackages": ["insecure-1.0"]}
        with realised(nix, "unfree", "broken", "insecure", config=config) as (_, realisation):
            assert len(realisation.closure) == 3

    def test_fails_fails(self, nix: Nix) -> None:
        """The package that is made to fail does so with a word."""
        with pytest.raises(NixBuildError) as caught, realised(nix, "fails"):
            pass
        assert caught.value.log_tail == ("about to fail",)

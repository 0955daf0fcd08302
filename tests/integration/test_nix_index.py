"""Indexes of real package sets say what Nix says of each package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from nixery_core import Cancellation, LocalPath, Nix
from nixery_core.errors import EvaluationError, InvalidConfig, PackageError, ProblemKind
from nixery_core.events import IndexProgress
from nixery_core.index.document import IndexDocument, index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.nix.demo import demo_path


def described(nix: Nix, folder: Path, **options: object) -> dict[str, IndexEntry]:
    return dict(nix.index(LocalPath(folder).pin("latest"), AMD64, **options))  # type: ignore[arg-type]


class TestIndex:
    @pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
    def test_an_index_and_nix_agree(self, nix: Nix, platform) -> None:
        """Every package of the demo has the same outputs, order and priority in the index as Nix gives."""
        pin = LocalPath(demo_path()).pin("latest")
        document = IndexDocument.parse(index_bytes({platform.system: dict(nix.index(pin, platform))}))
        usable = [name for name, entry in document.entries(platform.system) if entry.problem is None]
        assert {"hello", "toolbox", "_1name", "demoPackages.inner"} <= set(usable)
        asked = [*usable, "toolbox.dev", "upper", "1name", "demopackages.inner"]
        looked = document.look_up(asked, platform, cancellation=Cancellation())
        assert all(isinstance(package, ResolvedPackage) for package in looked)
        by_attribute = {package.attribute: package for package in looked}
        for package in nix.evaluate(pin, asked, [], platform):
            mine = by_attribute[package.attribute]
            assert attrs.evolve(package, derivation=None, name=mine.name) == mine

    def test_problems_agree(self, nix: Nix) -> None:
        """What Nix refuses has the same kind of problem in the index."""
        names = ["broken", "unfree", "insecure", "unsupported", "helo", "demopackages"]
        pin = LocalPath(demo_path()).pin("latest")
        with pytest.raises(PackageError) as caught:
            nix.evaluate(pin, names, [], AMD64)
        document = IndexDocument.parse(index_bytes({AMD64.system: dict(nix.index(pin, AMD64))}))
        looked = document.look_up(names, AMD64, cancellation=Cancellation())
        assert {p.name: p.kind for p in looked} == {p.name: p.kind for p in caught.value.problems}
        assert {p.name: p.candidates for p in looked} == {p.name: p.candidates for p in caught.value.problems}

    @pytest.mark.parametrize("batch", [1, 7, 1000])
    def test_hostile_packages_harm_no_other(self, nix: Nix, debian_packages: Path, batch: int) -> None:
        """What throws, aborts or recurses without end is written down as such, whatever the batch."""
        found = described(nix, debian_packages, batch=batch)
        for name in ("throws", "aborts", "asserts", "infinite", "missingInner", "unfree"):
            assert found[name].problem is ProblemKind.FAILED, name
        assert "abort called" in found["aborts"].reason
        assert found["curl"].install == ("bin", "man")
        assert set(found["curl"].outputs) == {"bin", "man", "out"}
        assert found["python3Packages.six"].outputs == found["python3-packages-alias.six"].outputs
        assert not {"aString", "aFunction", "aNumber", "lib", "tools", "debian"} & set(found)

    def test_other_sets_are_walked_when_asked(self, nix: Nix, tmp_path: Path) -> None:
        """Sets without recurseForDerivations are left alone, unless they are named; loops end."""
        (tmp_path / "default.nix").write_text(
            """let
              p = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
              self = {
                a = p "a-1"; quiet = { b = p "b-1"; "odd name" = p "c-1"; };
                loop = self // { recurseForDerivations = true; };
              };
            in self"""
        )
        assert "quiet.b" not in described(nix, tmp_path)
        found = described(nix, tmp_path, include=["quiet"])
        assert "quiet.b" in found
        assert not any(" " in name for name in found)
        assert max(name.count(".") for name in found) < 8

    def test_a_batch_may_be_as_large_as_the_set(self, nix: Nix, tmp_path: Path) -> None:
        """However many attributes are asked for at once, no call is longer than the system takes."""
        (tmp_path / "default.nix").write_text(
            """builtins.listToAttrs (builtins.genList (n: rec {
              name = "package-with-a-rather-long-name-for-an-attribute-${toString n}";
              value = derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
            }) 4000)"""
        )
        assert len(described(nix, tmp_path, batch=1_000_000)) == 4000

    def test_a_set_that_does_not_load_is_one_error(self, nix: Nix, tmp_path: Path) -> None:
        """A package set that cannot be evaluated at all is told as such, not package by package."""
        (tmp_path / "default.nix").write_text("{ a = ;")
        with pytest.raises(EvaluationError):
            described(nix, tmp_path)
        with pytest.raises(InvalidConfig, match="at least 1"):
            described(nix, demo_path(), batch=0)

    def test_progress_is_told(self, nix: Nix) -> None:
        """After every call of Nix an event says how far it is."""
        events: list[object] = []
        described(nix, demo_path(), batch=5, on_event=events.append)
        told = [event for event in events if isinstance(event, IndexProgress)]
        assert len(told) > 4
        assert told[-1].waiting == 0


class TestCommand:
    def test_writes_the_index(self, nix: Nix, tmp_path: Path) -> None:
        """`nixery-core index` writes a packed document of two platforms, and counts what is in it."""
        settings = [word for option in nix.options.items() for word in ("--nix-option", *option)]
        command = [sys.executable, "-m", "nixery_core", "index", "--source", "demo", "--output", "demo.json.xz"]
        command += ["--platform", "amd64", "--platform", "arm64", "--json", "--nix-store", str(nix.store), *settings]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        counted = json.loads(done.stdout)
        assert counted["systems"]["aarch64-linux"]["problems"] == 4
        assert counted["size"] == (tmp_path / "demo.json.xz").stat().st_size
        assert [file.name for file in tmp_path.iterdir()] == ["demo.json.xz"]

"""What is installed is whole, and says of itself what is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nixery_core
from nixery_core import _nixfiles
from nixery_core.errors import NixError

PACKAGE = Path(nixery_core.__file__).parent
CHECKOUT = Path(__file__).parents[2]
COMMANDS = {
    "the demo": "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/nixery-core demo",
    "the tests": "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox",
}

in_checkout = pytest.mark.skipif(not (CHECKOUT / "noxfile.py").exists(), reason="runs in a checkout only")


class TestMetadata:
    def test_says_what_it_is(self) -> None:
        """The distribution names its licence, its oldest Python and its types."""
        found = metadata.metadata("nixery-core")
        assert found["License-Expression"] == "Apache-2.0"
        assert found["Requires-Python"] == ">=3.11"
        assert "Typing :: Typed" in found.get_all("Classifier", [])
        assert found["Description"].startswith("# nixery_core")

    def test_type_checkers_find_the_types(self) -> None:
        """The marker of PEP 561 is installed with the package."""
        assert (PACKAGE / "py.typed").is_file()

    def test_core_depends_on_little(self) -> None:
        """Without an extra, nothing but attrs, cattrs, fsspec and three compressors is installed."""
        requirements = [Requirement(text) for text in metadata.requires("nixery-core") or []]
        core = {canonicalize_name(found.name): found for found in requirements if "extra" not in str(found.marker)}
        assert set(core) == {"attrs", "cattrs", "deflate", "fsspec", "isal", "backports-zstd"}
        # what the standard library has is not installed
        zstd = core["backports-zstd"]
        assert zstd.marker is not None
        assert not zstd.marker.evaluate({"python_version": "3.14"})

    def test_command_is_installed(self) -> None:
        """The distribution brings the command, and it knows its own version."""
        (entry,) = metadata.entry_points(group="console_scripts", name="nixery-core")
        assert entry.value == "nixery_core.cli:main"
        said = subprocess.run(
            [sys.executable, "-m", "nixery_core", "--version"], capture_output=True, text=True, check=True, timeout=60
        )
        assert said.stdout.strip() == f"nixery-core {metadata.version('nixery-core')}"

    def test_every_public_name_is_there(self) -> None:
        """`from nixery_core import *` works, in alphabetical order, without a name of another library."""
        assert sorted(nixery_core.__all__) == list(nixery_core.__all__)
        for name in nixery_core.__all__:
            assert getattr(nixery_core, name).__module__.startswith("nixery_core.")


class TestNixFiles:
    def test_expressions_are_found(self) -> None:
        """The Nix expressions are real files, in the wheel as in a checkout."""
        for name in ("load.nix", "resolve.nix", "demo/default.nix"):
            assert _nixfiles.nix_file(name).is_file()

    def test_installed_package_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A package takes its own expressions, and a checkout the ones beside it."""
        package = tmp_path / "nixery_core"
        package.mkdir()
        shutil.copytree(_nixfiles.nix_folder(), tmp_path / "nix")
        monkeypatch.setattr(_nixfiles, "__file__", str(package / "_nixfiles.py"))
        assert _nixfiles.nix_folder() == tmp_path / "nix"
        shutil.copytree(tmp_path / "nix", package / "_nix")
        assert _nixfiles.nix_folder() == package / "_nix"

    def test_missing_expressions_are_a_clear_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A package without its expressions says so, and what to do."""
        monkeypatch.setattr(_nixfiles, "__file__", str(tmp_path / "nixery_core" / "_nixfiles.py"))
        with pytest.raises(NixError, match="install nixery-core again"):
            _nixfiles.nix_folder()

    def test_identity_follows_the_expressions(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A changed expression changes the hash that enters cache keys; the demo does not."""
        before = _nixfiles.expressions_hash()
        folder = tmp_path / "nixery_core" / "_nix"
        shutil.copytree(_nixfiles.nix_folder(), folder)
        monkeypatch.setattr(_nixfiles, "__file__", str(folder.parent / "_nixfiles.py"))
        assert _nixfiles.expressions_hash() == before
        (folder / "demo" / "default.nix").write_text("{ }")
        assert _nixfiles.expressions_hash() == before
        (folder / "load.nix").write_text("{ }")
        assert _nixfiles.expressions_hash() != before


@in_checkout
class TestProject:
    @pytest.mark.parametrize("what", COMMANDS)
    def test_readme_has_the_command(self, what: str) -> None:
        """One command of the README runs the demo, and one the tests."""
        assert f"$ {COMMANDS[what]}\n" in (CHECKOUT / "README.md").read_text()

    def test_ci_runs_the_command_of_the_readme(self) -> None:
        """CI runs the very command that the README names."""
        assert COMMANDS["the tests"] in (CHECKOUT / ".ci" / "run").read_text()

    def test_sdist_has_what_the_wheel_is_made_of(self) -> None:
        """The folder of the expressions is in the sdist, or no wheel could be made of it."""
        hatch = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
        assert "/nix" in hatch["sdist"]["include"]
        assert hatch["wheel"]["force-include"] == {"nix": "nixery_core/_nix"}

    def test_constraints_hold_versions_and_no_addresses(self) -> None:
        """The tested versions are pinned by name alone."""
        lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
        assert all(re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)

    def test_constraints_pin_what_is_required(self) -> None:
        """Every requirement of the project and its checks has a tested version that satisfies it."""
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
        groups = [*project["dependency-groups"].values(), project["project"]["dependencies"]]
        groups += [project["project"]["optional-dependencies"][extra] for extra in ("cli", "cache")]
        required = [Requirement(text) for group in groups for text in group if isinstance(text, str)]
        lines = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line]
        pins = {name.lower(): version for name, version in (line.split("==") for line in lines)}
        for requirement in required:
            assert requirement.name.lower() in pins, requirement
            assert pins[requirement.name.lower()] in requirement.specifier, requirement

    def test_every_public_name_is_documented(self) -> None:
        """The reference has a place for each name that `nixery_core` exports."""
        pages = "".join(page.read_text() for page in (CHECKOUT / "docs" / "reference").glob("*.md"))
        modules = {name: getattr(nixery_core, name).__module__ for name in nixery_core.__all__}
        missing = [
            name
            for name, module in modules.items()
            if not re.search(rf":: (?:nixery_core\.{name}|{re.escape(module)}(?:\.{name})?)\s", pages)
        ]
        assert missing == []

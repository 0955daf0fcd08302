"""The checks of the project: ``nox`` runs the quick ones, ``nox --list`` names them all.

Where the environment variable CI is set, ``nox`` runs every session, and a test whose tool is
missing fails instead of being skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ROOT / "constraints.txt"
AZURITE = "3.35.0"
"""The newest that is made for the Node.js of Debian 12, which is 18."""

QUICK = ["lint", "typing", "tests", "property"]
# what prints the results of tests comes last, where a reader of the log looks first
EVERYTHING = ["lint", "typing", "docs", "dist", "demo", "property", "fuzz", "backends", "integration", "tests"]

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = EVERYTHING if os.environ.get("CI") else QUICK


def install(session: nox.Session, *packages: str, groups: tuple[str, ...] = ()) -> None:
    """Install packages and dependency groups of pyproject.toml in the versions that were tested."""
    requirements = nox.project.dependency_groups(PYPROJECT, *groups) if groups else ()
    session.install("--constraint", str(CONSTRAINTS), *packages, *requirements)


def install_azurite(session: nox.Session) -> None:
    """Install Azurite where its tests look for it, unless there is one already."""
    folder = ROOT / ".nox" / "azurite"
    package = folder / "node_modules" / "azurite" / "package.json"
    if os.environ.get("NIXERY_AZURITE") or shutil.which("azurite-blob"):
        return
    if package.exists() and json.loads(package.read_text())["version"] == AZURITE:
        return
    if shutil.which("npm") is None:
        session.warn("there is no npm, so there is no Azurite: the tests of Azure are skipped")
        return
    # no scripts of packages are run, for none is needed
    quiet = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    session.run("npm", "install", "--prefix", str(folder), *quiet, f"azurite@{AZURITE}", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes: ruff."""
    install(session, groups=("lint",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Types: mypy --strict on the library, and on code that uses it as its users do."""
    install(session, "--editable", ".", groups=("typing",))
    session.run("mypy", "--strict", "--package", "nixery_core")
    session.run("mypy", "--strict", "tests/typing", "noxfile.py")


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests, and the examples in docstrings."""
    install(session, "--editable", ".", groups=("test",))
    session.run("pytest", "tests/unit", "nixery_core", *session.posargs)


@nox.session(name="property")
def properties(session: nox.Session) -> None:
    """Properties that hold for all inputs: hypothesis."""
    install(session, "--editable", ".", groups=("test",))
    session.run("pytest", "tests/property", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hostile bytes for everything that reads binary caches, for NIXERY_FUZZ_SECONDS (30)."""
    install(session, "--editable", ".", groups=("test",))
    session.run("pytest", "tests/fuzz", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Tests with real tools: nix, git, skopeo, podman ..."""
    install(session, "--editable", ".", groups=("test",))
    session.run("pytest", "tests/integration", *session.posargs)


@nox.session
def backends(session: nox.Session) -> None:
    """Storage over networks: backends that are distributions of their own, SFTP, Azure; with real servers."""
    projects = sorted(path.parent for path in ROOT.glob("backends/*/pyproject.toml"))
    editable = [word for project in projects for word in ("--editable", str(project))]
    install(session, "--editable", ".", *editable, groups=("test", "typing", "backends", "servers"))
    install_azurite(session)
    for project in projects:
        session.run("mypy", "--strict", str(project / "src"))
    session.run("pytest", *(str(project / "tests") for project in projects), "tests/servers", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, with every warning an error, and run its examples."""
    install(session, "--editable", ".[cli]", groups=("docs", "test"))
    session.run("sphinx-build", "-W", "--keep-going", "-E", "-b", "html", "docs", "docs/_build/html")
    session.run("pytest", "docs", *session.posargs)


@nox.session
def dist(session: nox.Session) -> None:
    """Build what is published, install it in a clean environment and test it from an empty folder.

    In the checkout ``import nixery_core`` finds the folder of that name, whatever was installed.
    """
    install(session, groups=("dist",))
    # absolute, because the tests run elsewhere
    folder = Path(session.create_tmp()).absolute()
    shutil.rmtree(folder)
    folder.mkdir()
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"), ".")
    for project in sorted(ROOT.glob("backends/*/pyproject.toml")):
        session.run("python", "-m", "build", "--outdir", str(folder / "dist"), str(project.parent))
    wheels = [str(wheel) for wheel in sorted((folder / "dist").glob("*.whl"))]
    session.run("python", "-m", "venv", str(folder / "venv"))
    python = str(folder / "venv" / "bin" / "python")
    requirements = nox.project.dependency_groups(PYPROJECT, "test")
    session.run(python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *wheels, *requirements, external=True)
    empty = folder / "empty"
    empty.mkdir()
    shutil.copytree(ROOT / "tests", empty / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", empty)
    session.chdir(empty)
    session.run(python, "-m", "pytest", "tests/unit", "--pyargs", "nixery_core", *session.posargs, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Build an image of the packages that come with the library, offline and with Python alone."""
    install(session, "--editable", ".[cli]")
    folder = Path(session.create_tmp()) / "demo"
    # nothing but the environment of the session: no Nix, no other tool
    alone = {"PATH": ""}
    session.run("nixery-core", "demo", "--dir", str(folder), env=alone)
    # the second time everything is there already
    session.run("nixery-core", "demo", "--dir", str(folder), env=alone)


@nox.session
def lowest(session: nox.Session) -> None:
    """Unit tests with the oldest versions of what the library depends on."""
    lowest_versions = [requirement.replace(">=", "==", 1) for requirement in PYPROJECT["project"]["dependencies"]]
    session.install("--editable", ".", *lowest_versions, *nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("pytest", "tests/unit", "nixery_core", *session.posargs)

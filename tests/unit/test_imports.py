"""Imports point one way, and importing the library does nothing but define things."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import nixery_core

PACKAGE = Path(nixery_core.__file__).parent

# Each row may import the rows above it, and nothing of its own row but itself.
ROWS: tuple[tuple[str, ...], ...] = (
    ("_redact",),
    ("errors",),
    ("events", "cancellation", "_fields", "_unattended", "treemap"),
    ("model",),
    ("_fetch", "_nixfiles", "_documents", "_remembered"),
    ("sources", "layering"),
    ("storage", "stores", "compression", "index"),
    ("_ustar", "layer_stream"),
    ("archive",),
    ("layer_writer",),
    ("nix", "customisation", "export", "popcount", "served"),
    ("image", "comparison", "manifest_cache", "assemble", "_shared_layers", "_platform_choice", "demo"),
    ("_run", "cache_source"),
    ("_batch", "_image_work"),
    ("builder", "keeping"),
    ("server",),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, row in enumerate(ROWS) for unit in row}
# nixery_core itself re-exports the library, but nothing that needs an extra
NOT_REEXPORTED = {"cli", "server", "__main__", "testing"}
# the test kit may use all of the library, and nothing may use the test kit
TEST_KIT = "testing"


@attrs.frozen(order=True)
class Edge:
    """One import between modules of the library."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def unit(module: str) -> str:
    """Return the part of the library that a module belongs to; empty for nixery_core itself.

    >>> unit("nixery_core.storage.keys")
    'storage'
    """
    return module.partition(".")[2].partition(".")[0]


def module_name(file: Path, package: Path) -> str:
    parts = (package.name, *file.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def edges(package: Path) -> Iterator[Edge]:
    """Give every import of one module of *package* by another, wherever it stands in the file."""
    known = {module_name(file, package) for file in package.rglob("*.py")}
    for file in sorted(package.rglob("*.py")):
        importer = module_name(file, package)
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    yield Edge(importer, "." * node.level + (node.module or ""), node.lineno)
                    continue
                base = node.module or ""
                # `from package import module` imports the module
                names = [name if (name := f"{base}.{alias.name}") in known else base for alias in node.names]
            else:
                continue
            for name in names:
                if name.partition(".")[0] == package.name:
                    yield Edge(importer, name, node.lineno)


def complaint(edge: Edge) -> str | None:
    """Return what is wrong with an edge, or None."""
    if edge.imported.startswith("."):
        return f"{edge}: imports are absolute"
    importer, imported = unit(edge.importer), unit(edge.imported)
    if importer == imported:
        return None
    if importer == TEST_KIT:
        return None
    if imported == TEST_KIT:
        return f"{edge}: nothing imports the test kit"
    if not importer:
        return f"{edge}: it needs an extra" if imported in NOT_REEXPORTED else None
    if not imported:
        return f"{edge}: import the module that defines the name"
    for name in (importer, imported):
        if name not in RANK:
            return f"{edge}: {name} has no row in this test"
    if RANK[importer] <= RANK[imported]:
        return f"{edge}: {imported} is not in a row above {importer}"
    return None


def complaints(package: Path) -> list[str]:
    return [text for edge in sorted(set(edges(package))) if (text := complaint(edge))]


class TestDirection:
    def test_a_module_imports_only_rows_above_it(self) -> None:
        """Every import of the library points to a row above, and every module has a row."""
        assert complaints(PACKAGE) == []

    def test_every_part_of_the_library_has_a_row(self) -> None:
        """A new module is put into a row on purpose, also when nothing imports it yet."""
        parts = {unit(module_name(file, PACKAGE)) for file in PACKAGE.rglob("*.py")} - {"", TEST_KIT}
        assert parts - RANK.keys() == set()

    def test_no_row_names_what_is_not_there(self) -> None:
        """The table tells of the library as it is."""
        parts = {unit(module_name(file, PACKAGE)) for file in PACKAGE.rglob("*.py")}
        assert RANK.keys() - parts == set()

    @pytest.mark.parametrize(
        ("file", "source", "expected"),
        [
            ("model/digest.py", "from nixery_core.builder import ImageBuilder", "builder is not in a row above model"),
            ("model/digest.py", "def f():\n    import nixery_core.storage.keys", "storage is not in a row above model"),
            ("model/digest.py", "from nixery_core import storage", "storage is not in a row above model"),
            ("model/digest.py", "from nixery_core import ImageBuilder", "import the module that defines the name"),
            ("model/digest.py", "from . import names", "imports are absolute"),
            ("storage/keys.py", "import nixery_core.stores.reader", "stores is not in a row above storage"),
            ("builder.py", "from nixery_core.testing.backend import BackendTests", "nothing imports the test kit"),
            ("__init__.py", "from nixery_core.cli import main", "it needs an extra"),
            ("novelty.py", "from nixery_core.errors import NixeryError", "novelty has no row"),
            (
                "events.py",
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nixery_core.builder import X",
                "builder is not in a row above events",
            ),
        ],
    )
    def test_a_bad_edge_is_named(self, tmp_path: Path, file: str, source: str, expected: str) -> None:
        """The check itself finds each kind of wrong import and names module and line."""
        package = tmp_path / "nixery_core"
        for module in ("errors", "builder", "cli/__init__", "storage/__init__", "storage/keys", "testing/backend"):
            path = package / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(source)
        (found,) = complaints(package)
        assert expected in found
        assert found.startswith(f"{module_name(package / file, package)}:{source.count(chr(10)) + 1} ")

    @pytest.mark.parametrize(
        ("file", "source"),
        [
            ("model/closure.py", "from nixery_core.model.digest import Digest\nfrom nixery_core.errors import X"),
            ("testing/backend.py", "from nixery_core.builder import ImageBuilder"),
            ("__init__.py", "from nixery_core.builder import ImageBuilder"),
            ("builder.py", "import nixery_core_but_another\nimport json"),
        ],
    )
    def test_a_good_edge_passes(self, tmp_path: Path, file: str, source: str) -> None:
        """What the rows allow is not refused."""
        package = tmp_path / "nixery_core"
        (package / file).parent.mkdir(parents=True)
        (package / file).write_text(source)
        assert complaints(package) == []


AUDIT = """
import os, sys
watched = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        watched.append(f"opens {arguments[0]} to write")
    elif event in ("os.mkdir", "os.rename", "subprocess.Popen", "socket.connect", "os.fork", "os.putenv"):
        watched.append(f"{event} {arguments}")
sys.dont_write_bytecode = True
import importlib, importlib.resources, tempfile, socket, ssl, fsspec, attrs, cattrs
before = set(sys.modules)

class Environment(type(os.environ)):
    def __getitem__(self, key):
        caller = sys._getframe(1)
        while caller.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc"):
            caller = caller.f_back
        if caller.f_globals["__name__"].startswith("nixery_core"):
            watched.append(f"{caller.f_globals['__name__']} reads {key} of the environment")
        return super().__getitem__(key)

os.environ.__class__ = Environment
sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
print("\\n".join(watched))
"""


def every_module() -> list[str]:
    return sorted(
        name
        for file in PACKAGE.rglob("*.py")
        if unit(name := module_name(file, PACKAGE)) not in ("testing", "__main__") and "._bars" not in name
    )


def python(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


class TestImporting:
    def test_importing_touches_nothing(self) -> None:
        """Importing any module reads no environment variable, writes no file, starts no program and no connection."""
        assert python("-c", AUDIT, *every_module()).strip() == ""

    def test_the_watch_notices(self, tmp_path: Path) -> None:
        """The watch of the test above sees a module that reads the environment and writes a file."""
        folder = tmp_path / "nixery_core_culprit"
        folder.mkdir()
        (folder / "__init__.py").write_text(
            f"import os\nos.environ.get('HOME')\nopen({str(tmp_path / 'written')!r}, 'w').close()\n"
        )
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{AUDIT}"
        seen = python("-c", code, "nixery_core_culprit")
        assert "nixery_core_culprit reads HOME" in seen
        assert "written to write" in seen

    def test_importing_the_library_needs_no_extra(self) -> None:
        """`import nixery_core` loads no web server, no terminal library, no cloud SDK and no test tool."""
        loaded = set(python("-c", "import nixery_core, sys; print('\\n'.join(sys.modules))").split())
        extras = {
            "s3fs",
            "gcsfs",
            "boto3",
            "botocore",
            "starlette",
            "uvicorn",
            "anyio",
            "rich",
            "pytest",
            "hypothesis",
            "networkx",
        }
        extras |= {"urllib3", "cryptography", "brotli"}
        assert loaded & extras == set()
        assert {name for name in loaded if unit(name) in NOT_REEXPORTED and name.startswith("nixery_core.")} == set()

    def test_importing_configures_no_logging(self) -> None:
        """The root logger is as it was: an application decides what is logged."""
        code = "import nixery_core.builder, logging; print(len(logging.root.handlers), logging.root.level)"
        assert python("-c", code).split() == ["0", "30"]

"""popcount over caches that a real Nix wrote counts what Nix itself says of the closures."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import attrs
import pytest

from nixery_core.cli import main
from nixery_core.layering.popularity_file import load_popularity
from nixery_core.model.closure import Closure
from nixery_core.model.platform import AMD64
from nixery_core.model.storepath import StorePath, package_name
from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_path
from nixery_core.sources import LocalPath
from nixery_core.testing.file_server import Answer, FileServer, Request


@attrs.frozen
class CopiedCache:
    """A binary cache, and what Nix says of the store that it was copied from."""

    folder: Path
    roots: tuple[StorePath, ...]
    rows: tuple[dict[str, object], ...]
    """Of ``nix path-info --json --recursive``."""


def run(nix: Nix, *words: str) -> str:
    program = str(nix.binaries / "nix") if nix.binaries else "nix"
    options = [word for name, value in nix.options.items() for word in ("--option", name, value)]
    command = [program, "--extra-experimental-features", "nix-command", *words, "--store", str(nix.store), *options]
    result = subprocess.run(command, env={**os.environ, **nix.environment}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def copied(nix: Nix, folder: Path, packages: Path, names: tuple[str, ...], compression: str) -> CopiedCache:
    """Build packages, copy all their outputs into a cache, and list them as a channel does."""
    resolved = nix.evaluate(LocalPath(packages).pin("latest"), names, [], AMD64)
    with nix.realise(resolved) as realisation:
        asked = realisation.closure.roots
        rows = json.loads(run(nix, "path-info", "--json", "--recursive", *map(str, asked)))
        rows = [{**row, "path": path} for path, row in rows.items()] if isinstance(rows, dict) else rows
        roots = tuple(sorted((StorePath.parse(row["path"]) for row in rows), key=str))
        run(nix, "copy", "--to", f"file://{folder}?compression={compression}", *map(str, asked))
    (folder / "store-paths").write_text("".join(f"{root}\n" for root in roots))
    return CopiedCache(folder, roots, tuple(rows))


@pytest.fixture(scope="module")
def demo_cache(nix: Nix, tmp_path_factory: pytest.TempPathFactory) -> CopiedCache:
    """The demo packages in a cache."""
    names = ("hello", "welcome", "lookup", "toolbox", "phrasebook", "editor-small", "editor-large")
    return copied(nix, tmp_path_factory.mktemp("demo-cache"), demo_path(), names, "xz")


@pytest.fixture(scope="module")
def debian_cache(nix: Nix, debian_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> CopiedCache:
    """Real programs with their libraries in a cache."""
    names = ("curl", "jq", "python3Packages.six")
    return copied(nix, tmp_path_factory.mktemp("debian-cache"), debian_packages, names, "zstd")


def expected(cache: CopiedCache) -> dict[str, int]:
    """Count the closure of each root package as Nix tells it; outputs of one derivation are one package."""
    deriver = {str(row["path"]): row.get("deriver") or row["path"] for row in cache.rows}
    closure = Closure.from_path_info(list(cache.rows), cache.roots)
    holders: dict[str, set[object]] = {}
    for root in cache.roots:
        seen, todo = {root}, [root]
        while todo:
            for reference in closure[todo.pop()].references:
                if reference not in seen:
                    seen.add(reference)
                    todo.append(reference)
        for path in seen:
            holders.setdefault(package_name(path.name), set()).add(deriver[str(root)])
    return {name: len(packages) for name, packages in holders.items()}


def counted(cache: str, roots: str, output: Path) -> dict[str, int]:
    assert main(["popcount", roots, "--cache", cache, "--output", str(output), "--progress", "none"]) == 0
    return dict(load_popularity(str(output)).counts)


@pytest.mark.parametrize("which", ["demo_cache", "debian_cache"])
def test_counts_are_those_of_nix(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """From a folder and from a web server the counts are those of `nix path-info`, and the files are equal."""
    cache: CopiedCache = request.getfixturevalue(which)
    want = expected(cache)
    assert len(want) > 5
    assert max(want.values()) > 2
    listed = str(cache.folder / "store-paths")
    assert counted(f"file://{cache.folder}", listed, tmp_path / "files.json") == want
    with FileServer(cache.folder) as server:
        assert counted(server.url, f"{server.url}/store-paths", tmp_path / "web.json") == want
    assert (tmp_path / "files.json").read_bytes() == (tmp_path / "web.json").read_bytes()


def test_one_root(debian_cache: CopiedCache, tmp_path: Path) -> None:
    """A single store path as root brings its whole closure, each package once."""
    closure = Closure.from_path_info(list(debian_cache.rows), debian_cache.roots)
    jq = next(path for path in closure.roots if path.package_name == "jq")
    found = counted(str(debian_cache.folder), str(jq), tmp_path / "jq.json")
    assert found["jq"] == found["glibc"] == 1
    assert set(found.values()) == {1}
    assert "curl" not in found


def test_a_lost_narinfo(demo_cache: CopiedCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A narinfo that is not there is named, with the path that needs it; the others are still looked up."""
    lost = next(path for path in demo_cache.roots if path.package_name == "greeting")

    def gone(request: Request, _: int) -> Answer | None:
        return Answer(status=404) if request.path.startswith(f"/{lost.hash}") else None

    with FileServer(demo_cache.folder, gone) as server:
        words = ["popcount", str(demo_cache.folder / "store-paths"), "--cache", server.url]
        words += ["--output", str(tmp_path / "x.json"), "--progress", "none"]
        assert main(words) == 10
        assert str(lost) in capsys.readouterr().err
        assert main([*words, "--allow-missing"]) == 0
        # what was found the first time is not asked for again
        others = [path for path in demo_cache.roots if path != lost]
        assert {server.asked(f"{path.hash}.narinfo") for path in others} == {1}
    assert load_popularity(str(tmp_path / "x.json")).counts["hello"] == 1

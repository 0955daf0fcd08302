"""Run the examples of the documentation, page by page, so that they cannot drift from the code.

The blocks ``python`` and ``console`` of a page run in order, in one empty folder.  A block of
``python`` that begins with ``>>>`` is a doctest.  In a block of ``console`` each line that begins
with ``$`` is a command of bash, and what follows is what it has to print (``...`` stands for
anything); where nothing follows it prints what it likes.

HTML comments, which readers do not see, say what a page or the block behind them needs:

    <!-- needs: nix skopeo -->      tools of the page; without them it is skipped, in CI it fails
    <!-- exit: 4 -->                the exit code of the last command of the next block
    <!-- not run: reason -->        the next block is no example of something that can run here

Nix works in a store of its own, without network, so that it needs no set-up and leaves nothing.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from nixery_core.nix.demo import demo_nix

DOCS = Path(__file__).parent
PAGES = sorted(
    [*DOCS.glob("*.md"), *DOCS.glob("[!_]*/*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]
)

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (?P<word>needs|exit|not run): (?P<value>.*?) -->", re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
_NOT_EXAMPLES = {"text", "toml", "json", "yaml", "ini", "nix", "toctree", "eval-rst"}
_TIMEOUT = 300.0


@attrs.frozen(kw_only=True)
class Block:
    """One example."""

    language: str
    body: str
    line: int
    exit_code: int = 0


def blocks(text: str) -> Iterator[Block]:
    """Give the examples of a page in order."""
    end = 0
    for fence in _FENCE.finditer(text):
        words = {match["word"]: match["value"] for match in _COMMENT.finditer(text, end, fence.start())}
        end = fence.end()
        language = fence["language"].strip().strip("{}").split(" ")[0]
        line = text.count("\n", 0, fence.start()) + 1
        if language in ("python", "console"):
            if "not run" not in words:
                yield Block(language=language, body=fence["body"], line=line, exit_code=int(words.get("exit", 0)))
        elif language.rstrip("}") not in _NOT_EXAMPLES:
            raise ValueError(f"line {line}: a block of {language or 'no language'}, which nobody can run")


def needed_tools(text: str) -> list[str]:
    return [tool for match in _COMMENT.finditer(text) if match["word"] == "needs" for tool in match["value"].split()]


def run_python(block: Block, page: Path, names: dict[str, object]) -> None:
    if not block.body.lstrip().startswith(">>>"):
        source = "\n" * block.line + block.body
        exec(compile(source, str(page), "exec"), names)  # noqa: S102 (the examples are ours)
        return
    test = doctest.DocTestParser().get_doctest(block.body, names, page.name, str(page), block.line)
    runner = doctest.DebugRunner(optionflags=_FLAGS)
    try:
        runner.run(test, clear_globs=False)
    except doctest.DocTestFailure as failure:
        pytest.fail(
            f"{page.name}:{block.line}: {failure.example.source}expected {failure.example.want!r}, got {failure.got!r}"
        )
    names |= test.globs


def run_console(block: Block, page: Path, folder: Path) -> None:
    commands = re.split(r"^\$ ", block.body, flags=re.MULTILINE)
    assert not commands[0].strip(), f"{page.name}:{block.line}: the block does not begin with a command"
    for number, command in enumerate(commands[1:], 1):
        # a command goes on in the next line behind a backslash
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*\n?)(.*)", command, re.DOTALL)
        assert match is not None
        line, want = match[1], match[2].strip()
        finished = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        where = f"{page.name}:{block.line}: {line}"
        expected = block.exit_code if number == len(commands) - 1 else 0
        assert finished.returncode == expected, f"{where}exits with {finished.returncode}:\n{finished.stdout}"
        if want:
            same = doctest.OutputChecker().check_output(f"{want}\n", finished.stdout, _FLAGS)
            assert same, f"{where}expected:\n{want}\ngot:\n{finished.stdout}"


def end_processes(variable: str) -> None:
    """End what an example has started in the background, when a later one has failed to end it."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            mine = variable.encode() in environment.read_bytes().split(b"\0")
            if mine and int(environment.parent.name) != os.getpid():
                os.kill(int(environment.parent.name), signal.SIGTERM)
        except OSError:  # it has ended, or is somebody else's
            continue


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, which is the current one; Nix keeps everything beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    settings = {**demo_nix(tmp_path / "nix").options, "experimental-features": "nix-command"}
    monkeypatch.setenv("NIX_CONFIG", "\n".join(f"{name} = {value}" for name, value in settings.items()))
    monkeypatch.setenv("NIX_REMOTE", str(tmp_path / "nix"))
    monkeypatch.setenv("NIX_USER_CONF_FILES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # a git of the user may ask for signatures or hooks
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("NIXERY_EXAMPLE", str(tmp_path))
    yield folder
    end_processes(f"NIXERY_EXAMPLE={tmp_path}")
    # Nix takes the write permission away from all it stores
    for path, _, _ in os.walk(tmp_path):
        Path(path).chmod(0o700)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS.parent)) for page in PAGES])
def test_examples_run(page: Path, folder: Path) -> None:
    """Every example of the page runs and prints what the page says."""
    text = page.read_text()
    examples = list(blocks(text))
    missing = [tool for tool in needed_tools(text) if shutil.which(tool) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in examples:
        if block.language == "python":
            run_python(block, page, names)
        else:
            run_console(block, page, folder)


def test_comments_are_understood() -> None:
    """No page has a comment that this file would pass over."""
    for page in PAGES:
        for comment in re.findall(r"<!--.*?-->", page.read_text(), re.DOTALL):
            assert _COMMENT.fullmatch(comment), f"{page.name}: {comment}"


def test_a_wrong_example_is_noticed(folder: Path) -> None:
    """A page whose example prints something else, or fails, does not pass."""
    page = folder / "page.md"
    for body in ("```console\n$ echo a\nb\n```", "```console\n$ false\n```", "```python\n>>> 1\n2\n```"):
        page.write_text(body + "\n")
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test_examples_run(page, folder)

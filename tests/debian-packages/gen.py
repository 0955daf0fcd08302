#!/usr/bin/env python3
"""Describe installed Debian packages: their files, and the packages that their ELF files need, followed to the end.

Needs no network and no root.  Usage: ``gen.py [NAME ..] > debian.json``, or ``gen.py --fits`` to
ask by the exit code whether the debian.json beside this file describes this machine.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

NAMES = [
    "bash",
    "coreutils",
    "curl",
    "file",
    "git",
    "grep",
    "gzip",
    "jq",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
]

SKIP = re.compile(
    r"^/usr/(share/(doc|man|locale|lintian|info|bug|bash-completion|zsh|doc-base|menu|applications|icons|"
    r"gitweb|perl5|mime|initramfs-tools)/|lib/x86_64-linux-gnu/(gconv|perl)|lib/systemd/|"
    r"lib/git-core/(?!git$|git-remote-http$|git-remote-https$|git-sh-setup$|mergetools)|sbin/)"
)
NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[(.*?)\]")


def output(*command: str) -> str:
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout


@functools.cache
def libraries() -> dict[str, str]:
    listing = output("/sbin/ldconfig", "-p")
    return dict(re.findall(r"^\t(\S+) \(libc6,x86-64[^)]*\) => (\S+)$", listing, re.MULTILINE)[::-1])


def real(path: str) -> str:
    """/bin/x -> /usr/bin/x: the directory is resolved, the last name is kept."""
    return str(Path(os.path.realpath(Path(path).parent)) / Path(path).name)


@functools.cache
def owner(path: str) -> str:
    for spelling in (path, real(path), real(path).removeprefix("/usr")):
        found = output("dpkg", "-S", spelling)
        if found:
            return found.split(":")[0].split(",")[0]
    raise SystemExit(f"nobody owns {path}")


def is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def describe(package: str) -> dict[str, object]:
    files, needs = set(), set()
    for name in map(real, output("dpkg", "-L", package).splitlines()):
        path = Path(name)
        folder = path.is_dir() and not path.is_symlink()
        if not name.startswith("/usr/") or SKIP.match(name) or not os.path.lexists(name) or folder:
            continue
        files.add(name)
        if is_elf(path):
            for library in NEEDED.findall(output("readelf", "-dW", name)):
                if library in libraries():
                    needs.add(owner(libraries()[library]))
    version = output("dpkg-query", "-f", "${Version}", "-W", package).split("\n")[0]
    return {"version": version, "files": sorted(files), "deps": sorted(needs - {package})}


def fits(described: dict[str, dict[str, list[str]]]) -> bool:
    return all(os.path.lexists(name) for package in described.values() for name in package["files"])


def main(arguments: list[str]) -> int:
    if arguments == ["--fits"]:
        return 0 if fits(json.loads((Path(__file__).parent / "debian.json").read_text())) else 1
    todo, found = arguments or list(NAMES), {}
    while todo:
        package = todo.pop()
        if package not in found:
            found[package] = describe(package)
            todo += found[package]["deps"]
    json.dump(found, sys.stdout, indent=1, sort_keys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

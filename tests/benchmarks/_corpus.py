"""Store paths made of this machine's own files: what the layers of real images are made of."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from nixery_core.model.storepath import StorePath

MIB = 1 << 20
SMALL = 32 << 10
LARGE = 8 << 20

_PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/libexec")
_TEXTS = ("/usr/share/doc", "/usr/share/perl", "/usr/include", "/usr/share/locale", "/usr/share")
_SMALL = ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share/perl5", "/usr/lib/go-1.19", "/usr/share", "/usr/lib")
_PACKED = (".gz", ".xz", ".zst", ".zip", ".whl", ".jar", ".png", ".jpg", ".woff2", ".deb", ".br")


def store_path(number: int, name: str) -> StorePath:
    """Return a store path with a hash of its own."""
    alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
    digits = "".join(alphabet[number // 32**power % 32] for power in range(32))
    return StorePath(digits[::-1], name)


def make_corpus(store: Path, size: int) -> list[StorePath]:
    """Copy about *size* bytes into store paths under *store*: small files, large, text, machine code, packed."""
    shares = {"small": 0.15, "text": 0.2, "programs": 0.35, "large": 0.2, "packed": 0.1}
    paths = []
    for number, (name, share) in enumerate(shares.items()):
        path = store_path(number, f"{name}-1.0")
        _copy(_chosen(name), store / path.base, int(size * share))
        paths.append(path)
    return paths


def make_small_files(store: Path, count: int = 50_000, size: int = 2048) -> StorePath:
    """Write *count* files of *size* bytes, a hundred in each directory."""
    path = store_path(99, "small-files-1.0")
    line = b"the quick brown fox %d jumps over the lazy dog %d\n"
    for number in range(count):
        directory = store / path.base / f"d{number // 100:04}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        text = line % (number, number * 7919)
        (directory / f"f{number % 100:02}").write_bytes((text * (size // len(text) + 1))[:size])
    return path


def split(store: Path, paths: Iterable[StorePath], into: Path, layers: int) -> list[StorePath]:
    """Spread the files of *paths* over *layers* store paths of very different sizes, by links."""
    result = [store_path(200 + number, f"part-{number:02}") for number in range(layers)]
    weights = [1.35**number for number in range(layers)]
    targets = [0.0] * layers
    for file in (file for path in paths for file in _files(store / path.base)):
        # the part that is furthest behind its share takes the next file
        part = min(range(layers), key=lambda number: targets[number] / weights[number])
        targets[part] += file.stat().st_size + 1024
        place = into / result[part].base / file.relative_to(store)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, place)
    return result


def _chosen(name: str) -> Iterator[Path]:
    if name == "programs":
        return (file for file in _all(_PROGRAMS) if _is_elf(file) and file.stat().st_size < LARGE)
    if name == "large":
        return (file for file in _all(("/usr/bin", "/usr/lib")) if file.stat().st_size >= LARGE)
    if name == "packed":
        return (file for file in _all(("/usr/share", "/usr/lib")) if file.suffix in _PACKED)
    if name == "small":
        return (file for file in _all(_SMALL) if file.stat().st_size < SMALL and file.suffix not in _PACKED)
    return (file for file in _all(_TEXTS) if file.stat().st_size >= SMALL and _is_text(file))


def _copy(files: Iterable[Path], into: Path, size: int) -> None:
    into.mkdir(parents=True)
    copied = 0
    for file in files:
        target = into / file.relative_to("/")
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o555 if os.access(file, os.X_OK) else 0o444)
        copied += file.stat().st_size
        if copied >= size:
            return


def _all(roots: Iterable[str]) -> Iterator[Path]:
    return (file for root in roots for file in _files(Path(root)))


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            file = Path(directory, name)
            try:
                status = file.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size and os.access(file, os.R_OK):
                yield file


def _is_elf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def _is_text(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"\0" not in opened.read(4096) and file.suffix not in _PACKED

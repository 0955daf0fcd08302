"""The demo as a binary cache in a folder: real narinfo files and archives, which Nix reads as well."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import attrs

from nixery_core.demo._packages import DemoPath, DemoSet
from nixery_core.demo._program import PLATFORMS
from nixery_core.errors import StorageError
from nixery_core.export.atomic_file import write_file_atomically
from nixery_core.index.document import index_bytes
from nixery_core.model.digest import Digest, nix_base32
from nixery_core.model.storepath import STORE_DIR
from nixery_core.stores.narinfo import NarInfo

_INFO = f"StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: 40\n"
_INDEX = "index.json"


@attrs.frozen
class DemoCache:
    """A binary cache of the demo, with its package index."""

    folder: Path

    @property
    def index(self) -> Path:
        """The package index."""
        return self.folder / _INDEX


def write_demo_cache(folder: str | os.PathLike[str]) -> DemoCache:
    """Write the demo's binary cache and its index into *folder*; what is there already stays.

    Every store path follows from its content, so no key has to be trusted.  The same files come out
    everywhere, at any time.

    Raises StorageError where *folder* cannot be written.
    """
    directory = Path(folder)
    try:
        (directory / "nar").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StorageError(f"the folder {directory} cannot be made: {reason}", hint="name another") from error
    entries = {}
    paths: dict[str, DemoPath] = {}
    for platform in PLATFORMS:
        packages = DemoSet(platform)
        entries[platform.system] = packages.entries
        paths |= {path.hash: found for path, found in packages.paths.items()}
    for found in paths.values():
        _write_path(directory, found)
    _write(directory / _INDEX, index_bytes(entries, source={"kind": "demo", "url": "nixery_core.demo"}))
    # last: a folder that has it is a whole cache
    _write(directory / "nix-cache-info", _INFO.encode())
    return DemoCache(directory)


def _write_path(directory: Path, found: DemoPath) -> None:
    packed = lzma.compress(found.nar, preset=6)
    file_hash = Digest.of(packed)
    info = NarInfo(
        store_path=found.path,
        url=f"nar/{nix_base32(bytes.fromhex(file_hash.hex))}.nar.xz",
        compression="xz",
        file_hash=file_hash,
        file_size=len(packed),
        nar_hash=Digest.of(found.nar),
        nar_size=len(found.nar),
        references=found.references,
        content_address=found.content_address,
    )
    _write(directory / info.url, packed)
    _write(directory / f"{found.path.hash}.narinfo", info.to_bytes())


def _write(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    with write_file_atomically(path) as writer:
        writer.write(data)

"""Put trees on disk, as a store would hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree


def write_store(store: MemoryStore, directory: Path) -> None:
    """Write every store path of *store* into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    for path, tree in store.trees.items():
        write_tree(tree, os.fsencode(directory / path.base))


def write_tree(tree: Tree, where: bytes) -> None:
    """Write *tree* to the new path *where*: files 0444 or 0555, directories that can be removed again."""
    if isinstance(tree, SymbolicLink):
        os.symlink(os.fsencode(tree.target), where)  # noqa: PTH211 - the path is bytes
    elif isinstance(tree, (bytes, Executable)):
        executable = isinstance(tree, Executable)
        mode = 0o555 if executable else 0o444
        fd = os.open(where, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - a file descriptor has no path
            file.write(tree.content if isinstance(tree, Executable) else tree)
            os.fchmod(fd, mode)
    else:
        assert isinstance(tree, Mapping)
        os.mkdir(where)  # noqa: PTH102 - the path is bytes
        for name, child in tree.items():
            write_tree(child, where + b"/" + os.fsencode(name))

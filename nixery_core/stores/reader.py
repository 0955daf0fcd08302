"""The interface to the content of store paths, wherever their bytes come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol

import attrs

from nixery_core.model.storepath import StorePath


class EntryType(Enum):
    """What a store can hold; Nix knows nothing else."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


# without slots a frozen class is made in two thirds of the time, and there is one for each file
@attrs.frozen(kw_only=True, slots=False)
class StoreEntry:
    """One file, directory or symbolic link of a store path."""

    name: bytes
    """Path relative to the store path, components joined by ``/``; empty for the store path itself."""
    type: EntryType
    executable: bool = False
    """Whether a regular file may be executed."""
    size: int = 0
    """Size of a regular file, bytes."""
    target: bytes = b""
    """Target of a symbolic link."""
    data: bytes | None = attrs.field(default=None, eq=False, repr=False)
    """The whole content of a regular file, where the reader has it at hand: of small files, up to about 1 MiB."""
    contents: Callable[[], Iterator[bytes]] | None = attrs.field(default=None, eq=False, repr=False)
    """Gives the content of a regular file in pieces; called at most once, before the next entry is taken.
    None where there is *data*, in listings, and for everything but regular files."""

    def pieces(self) -> Iterator[bytes]:
        """Give the content of a regular file in pieces, wherever it is; the same rules as for *contents*."""
        if self.contents is not None:
            return self.contents()
        return iter((self.data,) if self.data else ())

    def read(self) -> bytes:
        """Return the whole content of a small regular file; the same rules as for *contents*."""
        return b"".join(self.pieces())


class StoreReader(Protocol):
    """Where the content of store paths comes from: a directory, or NARs of a binary cache.

    A reader pickles, holds no open handle between calls, and is used by several threads at once.
    Entries come depth first, a directory before what it holds, names of one directory in byte
    order: the order of a NAR, so that every reader gives the same archive.
    Whatever is no regular file, directory or symbolic link raises StoreReadError with its path.
    """

    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* with contents; raises StoreReadError."""
        ...

    def listing(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* without contents; raises StoreReadError."""
        ...

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        """Return up to *size* first bytes of the regular file *name* in *path*; raises StoreReadError."""
        ...

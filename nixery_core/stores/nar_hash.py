"""The narHash of store paths, computed while their entries pass by.

Source: the Nix manual, "Nix Archive (NAR) format".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator

import attrs

from nixery_core.errors import StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType, StoreEntry


def verified(entries: Iterator[StoreEntry], path: StorePath, nar_hash: Digest) -> Iterator[StoreEntry]:
    """Give *entries*, with contents, on; raise StoreReadError at their end if they are not what *nar_hash* says.

    Args:
        entries: Every entry of *path* in the order of a StoreReader; contents have to be taken.
        path: What the entries are of, for the error.
        nar_hash: sha256 of its NAR.
    """
    nar = NarHash()
    try:
        for entry in entries:
            yield nar.add(entry)
    finally:
        close = getattr(entries, "close", None)
        if close is not None:
            close()
    found = nar.finish()
    if found != nar_hash:
        raise StoreReadError(
            f"{path} does not hold what it was registered with: its narHash is {found}, not {nar_hash}",
            hint=f"the store is damaged; repair it with: nix-store --repair-path {path}",
        )


class NarHash:
    """Computes the hash of a NAR from the entries of a store path, in constant memory.

    >>> nar = NarHash()
    >>> entry = nar.add(StoreEntry(name=b"", type=EntryType.SYMLINK, target=b"/nix/store"))
    >>> nar.finish().to_nix()
    'sha256:0nnl0qfdgngngjk6qavhbypfss5icxw9dhvx19b36clsvbmm5igg'
    """

    def __init__(self) -> None:
        self._state = hashlib.sha256(_text(b"nix-archive-1"))
        # names of the directories that are open, outermost first
        self._open: list[bytes] = []

    def add(self, entry: StoreEntry) -> StoreEntry:
        """Hash *entry*, and return it with contents that are hashed when they are taken."""
        name = entry.name
        if name:
            parent, _, base = name.rpartition(b"/")
            while self._open[-1] != parent:
                self._close_directory()
            self._state.update(_ENTRY + _text(base) + _NODE)
        if entry.type is EntryType.DIRECTORY:
            self._state.update(_DIRECTORY)
            self._open.append(name)
            return entry
        end = _END_IN_DIRECTORY if name else _END
        if entry.type is EntryType.SYMLINK:
            self._state.update(_SYMLINK + _text(entry.target) + end)
            return entry
        start = (_EXECUTABLE if entry.executable else _REGULAR) + entry.size.to_bytes(8, "little")
        end = bytes(-entry.size % 8) + end
        if entry.contents is None:
            self._state.update(b"".join((start, entry.data or b"", end)))
            return entry
        self._state.update(start)
        return attrs.evolve(entry, contents=functools.partial(self._hashed, entry.contents, end))

    def finish(self) -> Digest:
        """Return the hash, after the last entry."""
        while self._open:
            self._close_directory()
        return Digest("sha256", self._state.hexdigest())

    def _hashed(self, contents: Callable[[], Iterator[bytes]], end: bytes) -> Iterator[bytes]:
        for piece in contents():
            self._state.update(piece)
            yield piece
        self._state.update(end)

    def _close_directory(self) -> None:
        self._state.update(_END_IN_DIRECTORY if self._open.pop() else _END)


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


_ENTRY = _text(b"entry") + _text(b"(") + _text(b"name")
_NODE = _text(b"node")
_TYPE = _text(b"(") + _text(b"type")
_DIRECTORY = _TYPE + _text(b"directory")
_SYMLINK = _TYPE + _text(b"symlink") + _text(b"target")
_REGULAR = _TYPE + _text(b"regular") + _text(b"contents")
_EXECUTABLE = _TYPE + _text(b"regular") + _text(b"executable") + _text(b"") + _text(b"contents")
_END = _text(b")")
_END_IN_DIRECTORY = _END + _END

"""Listings of archives: the ``.ls`` files that some binary caches keep beside narinfo files.

Source: Nix, ``nar-accessor.cc`` (``listNar``).  Nobody signs them, so they are hints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from nixery_core.stores.nar import MAX_DEPTH, MAX_NAME, MAX_TARGET
from nixery_core.stores.reader import EntryType, StoreEntry

_VERSION = 1
# bytes of an archive around names, contents and targets; see nixery_core.stores.nar
_ROOT, _DIRECTORY, _ENTRY, _REGULAR, _EXECUTABLE, _SYMLINK = 24, 72, 88, 88, 32, 88


def parse_listing(data: bytes, *, nar_size: int) -> list[StoreEntry] | None:
    r"""Return the entries of a listing in the order of an archive, or None where it cannot be one of *nar_size* bytes.

    The size of an archive follows from names, sizes, targets and kinds, so a listing of another
    archive is found out by it; one that was forged with care is not.

    >>> [entry.size for entry in parse_listing(b'{"version":1,"root":{"type":"regular","size":5}}', nar_size=120)]
    [5]
    """
    try:
        document = json.loads(data)
        entries = list(_entries(document["root"])) if document["version"] == _VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entries if entries is not None and _nar_size(entries) == nar_size else None


def _entries(root: object) -> Iterable[StoreEntry]:
    pending: list[tuple[bytes, int, object]] = [(b"", 0, root)]
    while pending:
        name, depth, node = pending.pop()
        if not isinstance(node, Mapping) or depth > MAX_DEPTH:
            raise ValueError(name)
        kind = node["type"]
        if kind == "regular":
            size, executable = node["size"], node.get("executable", False)
            if type(size) is not int or size < 0 or type(executable) is not bool:
                raise ValueError(name)
            yield StoreEntry(name=name, type=EntryType.REGULAR, size=size, executable=executable)
        elif kind == "symlink":
            target = node["target"].encode()
            if not 0 < len(target) <= MAX_TARGET or b"\0" in target:
                raise ValueError(name)
            yield StoreEntry(name=name, type=EntryType.SYMLINK, target=target)
        elif kind == "directory":
            yield StoreEntry(name=name, type=EntryType.DIRECTORY)
            children = [(_name(child), inner) for child, inner in node["entries"].items()]
            prefix = name + b"/" if name else b""
            pending += [
                (prefix + child, depth + 1, inner) for child, inner in sorted(children, key=_first, reverse=True)
            ]
        else:
            raise ValueError(name)


def _name(text: str) -> bytes:
    name = text.encode()
    if not 0 < len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(text)
    return name


def _first(pair: tuple[bytes, object]) -> bytes:
    return pair[0]


def _nar_size(entries: Iterable[StoreEntry]) -> int:
    total = _ROOT
    for entry in entries:
        if entry.name:
            total += _ENTRY + _padded(len(entry.name.rpartition(b"/")[2]))
        if entry.type is EntryType.REGULAR:
            total += _REGULAR + _padded(entry.size) + (_EXECUTABLE if entry.executable else 0)
        elif entry.type is EntryType.SYMLINK:
            total += _SYMLINK + _padded(len(entry.target))
        else:
            total += _DIRECTORY
    return total


def _padded(size: int) -> int:
    return size + -size % 8


class ListingHash:
    """Summary of entries without their contents, to compare a listing with its archive."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, entry: StoreEntry) -> None:
        """Take the next entry."""
        facts = f"{entry.type.value} {entry.executable} {entry.size} {len(entry.name)} {len(entry.target)}\n"
        self._state.update(facts.encode() + entry.name + entry.target)

    def digest(self) -> bytes:
        """Return 32 bytes that are equal for equal entries."""
        return self._state.digest()

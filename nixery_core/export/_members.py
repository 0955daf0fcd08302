"""Members of an exported archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nixery_core.archive import ArchiveEntry
from nixery_core.stores.reader import EntryType


def member(name: str, size: int, contents: Callable[[], Iterator[bytes]]) -> ArchiveEntry:
    """Return the entry of a file."""
    return ArchiveEntry(name=name.encode(), type=EntryType.REGULAR, mode=0o644, size=size, contents=contents)


def document(name: str, data: bytes) -> ArchiveEntry:
    """Return the entry of a small file."""
    return member(name, len(data), lambda: iter((data,)))

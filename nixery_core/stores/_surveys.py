"""What was seen in archives that were read whole, kept so that they are not fetched for every question."""

from __future__ import annotations

import attrs

from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType, StoreEntry

HEAD = 512
"""First bytes of every program that are kept: what tells how it runs."""
MOST_ENTRIES = 1 << 18
"""Most entries that are kept, of all paths together."""


@attrs.define
class Survey:
    """What is known of one store path."""

    entries: list[StoreEntry]
    """Every entry, without content."""
    verified: bool
    """Whether the archive itself told so."""
    heads: dict[bytes, bytes] = attrs.field(factory=dict)
    """First bytes of regular files by name."""
    _by_name: dict[bytes, StoreEntry] = attrs.field(factory=dict, init=False)

    def head(self, name: bytes, size: int) -> bytes | None:
        """Return up to *size* first bytes of the file *name*, or None where they are not known."""
        if name not in self.heads:
            entry = self.entry(name)
            empty = self.verified and entry is not None and entry.type is EntryType.REGULAR and not entry.size
            return b"" if empty else None
        head, entry = self.heads[name], self.entry(name)
        assert entry is not None
        return head[:size] if len(head) >= min(size, entry.size) else None

    def entry(self, name: bytes) -> StoreEntry | None:
        """Return the entry *name*, or None where there is none."""
        if not self._by_name:
            self._by_name = {entry.name: entry for entry in self.entries}
        return self._by_name.get(name)


class Surveys:
    """The surveys of one process; a copy by pickle has none.  Two threads may make the same one."""

    def __init__(self) -> None:
        self._by_path: dict[StorePath, Survey] = {}

    def get(self, path: StorePath) -> Survey | None:
        """Return what is known of *path*."""
        return self._by_path.get(path)

    def put(self, path: StorePath, survey: Survey) -> None:
        """Keep what is known of *path*, and if that is too much, nothing else."""
        kept = sum(len(known.entries) for known in list(self._by_path.values()))
        if kept + len(survey.entries) > MOST_ENTRIES:
            self._by_path = {}
        self._by_path[path] = survey

    def __reduce__(self) -> tuple[type[Surveys], tuple[()]]:
        return Surveys, ()

"""Which of several store paths of one name is the one for a platform: what their programs are written for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.customisation.programs import is_elf, is_elf_for
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.stores.binary_caches import BinaryCaches, Found
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.reader import EntryType

_HEAD = 20
_MOST_FILES = 8
"""How many files of a store path are looked into."""
_MOST_PATHS = 24
"""How many store paths are looked into for one candidate, by its references where it has no programs itself."""


@attrs.frozen
class PlatformChoice:
    """Asks the caches; the answer is None where they do not tell, and nothing is guessed.

    One candidate is the answer if the programs and libraries in it, or in what it refers to, are
    written for the platform, and those of no other are.  Candidates with the same content are one.
    All of them have to be there: so the answer follows from what they are, and not from which of
    them a cache happens to have.
    """

    caches: BinaryCaches
    cancellation: Cancellation

    def __call__(self, paths: Sequence[StorePath], platform: Platform) -> StorePath | None:
        """Return the one of *paths* for *platform*, or None; raises BinaryCacheError."""
        there = {path: found for path, found in self.caches.find_all(paths) if found is not None}
        if len(there) < len(paths):
            return None
        reader = BinaryCacheReader(self.caches)
        fits = {path: self._fits(there[path], platform, reader) for path in paths}
        # without any program it is for every platform
        left = [path for path in paths if fits[path]] or [path for path in paths if fits[path] is None]
        contents = {(there[path].info.nar_hash, there[path].info.references) for path in left}
        return min(left) if len(contents) == 1 else None

    def _fits(self, candidate: Found, platform: Platform, reader: BinaryCacheReader) -> bool | None:
        """Return whether *candidate* is for *platform*; None where there is no program to tell by."""
        waiting, seen = [candidate], {candidate.info.store_path}
        while waiting and len(seen) <= _MOST_PATHS:
            found = waiting.pop(0)
            self.cancellation.check()
            for head in _heads(found.info.store_path, reader):
                return is_elf_for(head, platform)
            references = [path for path in found.info.references if path not in seen]
            seen.update(references)
            waiting.extend(other for _, other in self.caches.find_all(references) if other is not None)
        return None


def _heads(path: StorePath, reader: BinaryCacheReader) -> Iterator[bytes]:
    """Give the beginnings of ELF files in *path*."""
    likely = [
        entry.name
        for entry in reader.listing(path)
        if entry.type is EntryType.REGULAR and entry.size >= _HEAD and (entry.executable or b".so" in entry.name)
    ]
    for name in likely[:_MOST_FILES]:
        head = reader.read_head(path, name, _HEAD)
        if is_elf(head):
            yield head

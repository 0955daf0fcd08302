"""Which digests belong to a name: what makes blobs of one tenant unreadable through the names of another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from nixery_core.server.discovery import digests_of
from nixery_core.server.threads import Threads
from nixery_core.storage.backend import Backend

_MOST_NAMES = 1000


class Binding:
    """Answers whether a digest belongs to an image of a name.

    What once belonged to a name is remembered, so a client that began to pull before a tag moved
    gets its blobs to the end.
    """

    def __init__(self, backend: Backend, threads: Threads) -> None:
        self._backend = backend
        self._threads = threads
        self._known: OrderedDict[str, frozenset[str]] = OrderedDict()

    def note(self, name: str, digests: Iterable[str]) -> None:
        """Remember that *digests* belong to *name*."""
        self._known[name] = self._known.get(name, frozenset()).union(digests)
        self._known.move_to_end(name)
        while len(self._known) > _MOST_NAMES:
            self._known.popitem(last=False)

    async def holds(self, name: str, digest: str) -> bool:
        """Return whether *digest* belongs to an image of *name*; raises StorageError."""
        if digest in self._known.get(name, ()):
            return True
        key = ("digests", name)
        self.note(name, await self._threads.share(key, lambda: self._threads.run(digests_of, self._backend, name)))
        return digest in self._known[name]

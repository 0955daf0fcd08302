"""Removing blobs in the sight of everyone who publishes: the other side of nixery_core.storage.pins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from nixery_core.errors import StorageError
from nixery_core.keeping.clock import was_written_again
from nixery_core.keeping.parallel import each
from nixery_core.model.digest import Digest
from nixery_core.storage import pins
from nixery_core.storage.backend import Backend, ObjectInfo
from nixery_core.storage.keys import SWEEPS, parse_blob_key, sweep_key
from nixery_core.storage.pins import SWEEP_LIFETIME, Pin, Sweep, list_pins, read_pin

BATCH = 200
"""Blobs that are removed in one turn: whoever publishes one of them waits for no more than that."""


class Sweeper:
    """Removes blobs; publishers see which, and it sees what they hold.

    Names and cache entries have to be read after it was entered.  What is published later is known
    by its pin: a publisher leaves it in place while there is a sweep.

    Args:
        backend: Where the blobs are.
        workers: Threads that remove.
        since: The time of the storage before the blobs were listed that are to be removed; None where
            each was looked at by itself.
        seconds: A clock that goes on while the machine is suspended.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        workers: int,
        since: float | None = None,
        seconds: Callable[[], float] = pins.seconds,
    ) -> None:
        self._backend = backend
        self._workers = workers
        self._since = since
        self._seconds = seconds
        self._key = sweep_key()
        self._turn = 0
        self._written = 0.0
        # what a pin holds does not change, so each is read once
        self._pins: dict[str, tuple[Digest, ...]] = {}
        # pins whose owners had finished before we began, and the other sweeps of that moment
        self._finished: list[str] = []
        self._others: set[str] = set()

    def __enter__(self) -> Sweeper:
        self._write(())
        try:
            self._begin()
        except BaseException:
            with contextlib.suppress(StorageError):
                self._backend.delete(self._key)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # an error of the body is the one to raise; a sweep that stays names nothing, and the next gc removes it
        with contextlib.suppress(*() if error is None else (StorageError,)):
            self._backend.delete(self._key)
            # whoever began later than these pins were done has read the names; the others have ended
            if not any(info.key in self._others for info in self._backend.list(SWEEPS)):
                for key in self._finished:
                    self._backend.delete(key)

    def pinned(self) -> set[Digest]:
        """Return the blobs that publishers hold now, or held since the beginning; raises StorageError."""
        self._pins.update((key, () if pin is None else pin.blobs) for key, pin in self._new_pins())
        return {digest for held in self._pins.values() for digest in held}

    def _begin(self) -> None:
        for key, pin in self._new_pins():
            # the names of those who have finished are there, and are read after this
            self._pins[key] = () if pin is None or pin.done else pin.blobs
            if pin is not None and pin.done:
                self._finished.append(key)
        self._others = {info.key for info in self._backend.list(SWEEPS)} - {self._key}

    def _new_pins(self) -> Iterator[tuple[str, Pin | None]]:
        new = [key for key in list_pins(self._backend) if key not in self._pins]
        return zip(new, each(lambda key: read_pin(self._backend, key), new, workers=self._workers), strict=True)

    def remove(self, blobs: Sequence[ObjectInfo]) -> list[ObjectInfo]:
        """Remove those of *blobs* that no one holds and that have not changed; return them.

        At most BATCH of them are taken.  One that is not removed is in use again, or time ran out:
        leave it to the next time.  Raises StorageError if one cannot be removed; others are.
        """
        held = self.pinned()
        batch = [blob for blob in blobs[:BATCH] if _digest(blob) not in held]
        if not batch:
            return []
        self._write(tuple(_digest(blob) for blob in batch))
        # after our own words are written: who has not seen them has written a pin before that
        held = self.pinned()
        free = [blob for blob in batch if _digest(blob) not in held]
        try:
            removed = list(each(self._remove, free, workers=self._workers))
        finally:
            # no thread removes any more, so no one needs to wait
            self._write(())
        return [blob for blob, is_removed in zip(free, removed, strict=True) if is_removed]

    def _remove(self, blob: ObjectInfo) -> bool:
        found = self._backend.stat(blob.key)
        if found is None or self._is_new(blob, found):
            # gone, or written again since: then it is new, and not what was looked at
            return False
        if self._seconds() - self._written > SWEEP_LIFETIME:
            # by now publishers may take us for dead
            return False
        self._backend.delete(blob.key)
        return True

    def _is_new(self, blob: ObjectInfo, found: ObjectInfo) -> bool:
        # in a listing some servers tell another time of an object, seconds apart for one that they copied
        unchanged = self._since is not None and found.modified is not None and found.modified < self._since
        return was_written_again(blob, found) and not (unchanged and found.size == blob.size)

    def _write(self, deleting: tuple[Digest, ...]) -> None:
        # from before the write, since from then on it may be read
        self._written = self._seconds()
        sweep = Sweep(turn=self._turn, deleting=deleting)
        self._turn += 1
        self._backend.replace(self._key, sweep.to_bytes(), content_type="application/json")


def _digest(blob: ObjectInfo) -> Digest:
    digest = parse_blob_key(blob.key)
    assert digest is not None
    return digest

"""One builder of an image at a time, also where several registries share one storage.

A lease is an object ``leases/<key>/<generation>`` that is created only if absent, so each
generation has one holder.  The holder rewrites it from time to time, and removes it when done.
Whoever waits looks on: an object whose content has not changed for a whole *ttl* of the
looker's own clock belongs to nobody any more, and the next generation may be created.  No two
clocks are ever compared.

Leases spare work; they protect nothing.  Where a holder sleeps longer than the *ttl* (a suspended
machine), two build the same image, and the storage keeps the first: see ``docs/explanation/leases.md``.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType

import attrs

from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError
from nixery_core.model.oci import canonical_json
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import lease_key, lease_prefix, parse_lease_key

DEFAULT_TTL = 30.0
"""How long a holder may be silent, seconds."""
BEATS = 5
"""How often a holder speaks within one ttl; all but one may get lost."""

_log = logging.getLogger(__name__)


@attrs.frozen
class _Seen:
    generation: int
    content: bytes


class Leases:
    """Takes leases in a storage.

    Args:
        backend: Where they are.
        ttl: How long a holder may be silent before it counts as gone, seconds; the same for
            everyone who shares the storage.
        clock: Seconds that only grow, on this machine.

    Raises:
        InvalidConfig: If *ttl* is not positive.

    >>> from nixery_core.storage.plugins import open_backend
    >>> leases = Leases(open_backend("memory://leases"))
    >>> with leases.watch("a" * 64).acquire() as lease:
    ...     leases.watch("a" * 64).acquire() is None
    True
    """

    def __init__(
        self, backend: Backend, *, ttl: float = DEFAULT_TTL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if ttl <= 0:
            raise InvalidConfig(f"the ttl of a lease is a number of seconds above 0, not {ttl}")
        self._backend = backend
        self._ttl = ttl
        self._clock = clock

    def watch(self, key: str) -> Watch:
        """Begin to look at the lease of *key*."""
        return Watch(self._backend, key, self._ttl, self._clock)


class Watch:
    """One looker at one lease; what it saw, and for how long nothing has changed."""

    def __init__(self, backend: Backend, key: str, ttl: float, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._key = key
        self._ttl = ttl
        self._clock = clock
        self._seen: _Seen | None = None
        self._since = 0.0

    def acquire(self) -> Lease | None:
        """Take the lease if nobody has it, or return None: look again after a while; raises StorageError."""
        generation = highest(self._backend, self._key)
        if generation == 0:
            return self._create(1)
        try:
            seen = _Seen(generation, self._backend.get(lease_key(self._key, generation)))
        except ObjectNotFound:
            # given back this very moment: what is there now shows at the next look
            self._seen = None
            return None
        if seen != self._seen:
            self._seen, self._since = seen, self._clock()
            return None
        if self._clock() - self._since < self._ttl:
            return None
        return self._create(generation + 1)

    def _create(self, generation: int) -> Lease | None:
        self._seen = None
        lease = Lease(self._backend, self._key, generation, self._ttl)
        return lease if self._backend.create(lease_key(self._key, generation), lease.content()) else None


class Lease:
    """A lease that is held: within ``with`` it is kept alive, and afterwards it is given back."""

    def __init__(self, backend: Backend, key: str, generation: int, ttl: float) -> None:
        self._backend = backend
        self._key = key
        self._generation = generation
        self._ttl = ttl
        self._holder = uuid.uuid4().hex
        self._beats = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def generation(self) -> int:
        """How many holders there were, with this one, since the lease was last free."""
        return self._generation

    def content(self) -> bytes:
        """Return what the object holds; it differs from holder to holder and from beat to beat."""
        return canonical_json({"holder": self._holder, "beats": self._beats})

    def held(self) -> bool:
        """Return whether nobody has taken over; raises StorageError."""
        # generations are counted anew when a lease was free, so the number alone proves nothing
        try:
            return highest(self._backend, self._key) == self._generation and self._holder.encode() in self._backend.get(
                lease_key(self._key, self._generation)
            )
        except ObjectNotFound:
            return False

    def beat(self) -> bool:
        """Tell that the holder lives; return False where another has taken over; raises StorageError."""
        if not self.held():
            return False
        self._beats += 1
        self._backend.replace(lease_key(self._key, self._generation), self.content())
        return True

    def release(self) -> None:
        """Give the lease back, with all that died before; one that was taken over is not ours; raises StorageError."""
        if not self.held():
            return
        # the own one last: as long as it is there, nobody looks at the older ones
        for generation in sorted(generations(self._backend, self._key)):
            if generation <= self._generation:
                self._backend.delete(lease_key(self._key, generation))

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._keep, name="nixery-core-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()
        try:
            self.release()
        except StorageError as failure:
            # the image is built; the lease will be taken for dead
            _log.warning("the lease of %s could not be given back: %s", self._key, failure)

    def _keep(self) -> None:
        while not self._done.wait(self._ttl / BEATS):
            try:
                if not self.beat():
                    _log.warning("another registry has taken over the build of %s", self._key)
                    return
            except StorageError as failure:
                _log.warning("the lease of %s could not be renewed: %s", self._key, failure)


def generations(backend: Backend, key: str) -> list[int]:
    """Return every generation of the lease of *key* that is in the storage; raises StorageError."""
    parsed = (parse_lease_key(info.key) for info in backend.list(lease_prefix(key)))
    return [found[1] for found in parsed if found is not None]


def highest(backend: Backend, key: str) -> int:
    """Return the generation that counts, or 0 where the lease is free; raises StorageError."""
    return max(generations(backend, key), default=0)

"""Pins: how whoever publishes an image and whoever removes garbage stay out of each other's way.

A publisher first writes down which blobs it counts on (a pin), and then looks who removes what (the
sweeps).  A collector first writes down what it removes, and then looks who counts on what.  So at
least one of the two sees the other, on whatever machines they run and whatever their clocks say.
docs/decisions/0016-garbage.md tells why that is enough.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs

from nixery_core.errors import InvalidDocument, ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Descriptor, Document
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import blob_exists
from nixery_core.storage.keys import PINS, SWEEPS, blob_key, pin_key

FORMAT_VERSION = 1
PIN_LIFETIME = 24 * 3600.0
"""Seconds after which a pin counts no more: its owner has died."""
SWEEP_LIFETIME = 60.0
"""Seconds for which a collector may remove what its sweep names, without writing it again."""
WORKERS = 16
"""Threads that look at the blobs of one image: each look may be a request to a server."""

# whoever has not written its sweep again after that time has died
_PATIENCE = 2 * SWEEP_LIFETIME
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_JSON = "application/json"


@attrs.frozen(kw_only=True)
class Pin(Document):
    """Blobs that someone is about to publish, and that may not be removed."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=attrs.validators.in_([FORMAT_VERSION]))
    blobs: tuple[Digest, ...]
    done: bool = False
    """Whether its owner has finished, and left it only for collectors that ran."""


@attrs.frozen(kw_only=True)
class Sweep(Document):
    """Says that someone removes garbage, and what just now; written anew for each turn."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=attrs.validators.in_([FORMAT_VERSION]))
    turn: int
    deleting: tuple[Digest, ...] = ()


@contextlib.contextmanager
def pinned(
    backend: Backend, blobs: Collection[Descriptor], *, pause: Callable[[float], object] | None = None
) -> Iterator[None]:
    """Hold *blobs*: in the body all of them are in the storage, and no collector removes one.

    What is given a name in the body is held by that name afterwards.  Costs one write, one listing,
    one removal and a look at each blob.

    Args:
        backend: Where they are.
        blobs: What is counted on.
        pause: Sleeps for some seconds, while someone removes one of the blobs.

    Raises:
        ObjectNotFound: One of *blobs* is not in the storage, for instance because it was removed since
            its user saw it there: write it again.
        StorageError: The storage failed.
    """
    key = pin_key()
    started = seconds()
    pin = Pin(blobs=tuple(blob.digest for blob in blobs))
    backend.replace(key, pin.to_bytes(), content_type=_JSON)
    try:
        _wait_for_sweeps(backend, {blob.digest for blob in blobs}, pause or _sleep)
        _check_blobs(backend, blobs)
        if seconds() - started > PIN_LIFETIME / 2:
            raise StorageError("this machine stood still while an image was published", hint="run it again")
        yield
    finally:
        # a collector that runs may have looked at names before ours was there: to it, the pin tells of them
        with contextlib.suppress(StorageError):
            if next(iter(backend.list(SWEEPS)), None) is None:
                backend.delete(key)
            else:
                backend.replace(key, attrs.evolve(pin, done=True).to_bytes(), content_type=_JSON)


def list_pins(backend: Backend) -> Iterator[str]:
    """Give the keys of all pins."""
    return (info.key for info in backend.list(PINS))


def read_pin(backend: Backend, key: str) -> Pin | None:
    """Return a pin, or None if it is gone; raises StorageError for one that cannot be read."""
    try:
        return Pin.from_bytes(backend.get(key))
    except ObjectNotFound:
        return None
    except InvalidDocument as error:
        raise StorageError(
            f"nobody can tell what {key} holds: {error.message}",
            key=key,
            hint="a newer version may have written it: use that one; after a day it counts no more",
        ) from error


def _wait_for_sweeps(backend: Backend, wanted: set[Digest], pause: Callable[[float], object]) -> None:
    """Return when nobody removes a blob of *wanted*, or who did so gives no more sign of life."""
    seen: dict[str, tuple[bytes, float]] = {}
    wait = _SHORTEST_PAUSE
    while True:
        blocked = False
        for info in backend.list(SWEEPS):
            try:
                data = backend.get(info.key)
            except ObjectNotFound:
                continue
            if not _touches(data, wanted):
                continue
            before, since = seen.get(info.key, (b"", 0.0))
            if before != data:
                seen[info.key] = (data, seconds())
            elif seconds() - since > _PATIENCE:
                continue
            blocked = True
        if not blocked:
            return
        pause(wait)
        wait = min(2 * wait, _LONGEST_PAUSE)


def _touches(sweep: bytes, wanted: set[Digest]) -> bool:
    try:
        return not wanted.isdisjoint(Sweep.from_bytes(sweep).deleting)
    except InvalidDocument:
        # of a newer version, perhaps: it may be about anything
        return True


def _check_blobs(backend: Backend, blobs: Collection[Descriptor]) -> None:
    with ThreadPoolExecutor(min(WORKERS, max(len(blobs), 1)), thread_name_prefix="nixery-core-pins") as pool:
        exist = pool.map(lambda blob: blob_exists(backend, blob), blobs)
        missing = [blob for blob, exists in zip(blobs, exist, strict=True) if not exists]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ObjectNotFound(
            f"the blob {missing[0].digest} is not in the storage, or has not its {missing[0].size} bytes{more}",
            key=blob_key(missing[0].digest),
            hint="build the image again: what is missing is written again",
        )


def _sleep(duration: float) -> None:
    time.sleep(duration)


def seconds() -> float:
    """Return seconds of a clock that goes on while this machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

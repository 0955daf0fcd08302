"""What moving names were resolved to, believed for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import attrs

from nixery_core.errors import InvalidConfig

_T = TypeVar("_T")
MOST = 16
"""Most names that are remembered at once, where nothing else is said."""


@attrs.define(eq=False)
class _Value:
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    value: Any = None
    read: float | None = None


class Remembered:
    """Values by name, each believed for a number of seconds; copies by pickle begin empty.

    >>> remembered = Remembered()
    >>> [remembered.get("main", 60, lambda: answer) for answer in (1, 2)]
    [1, 1]
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: dict[Hashable, _Value] = {}

    def get(self, key: Hashable, ttl: float, resolve: Callable[[], _T]) -> _T:
        """Return the value of *key*, asked for with *resolve* where it is unknown or older than *ttl* seconds.

        Threads that want the same value ask for it once.
        """
        with self._lock:
            known = self._values.pop(key, None) or _Value()
            # the last one asked for is the last to be forgotten
            self._values[key] = known
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        with known.lock:
            if known.read is None or time.monotonic() - known.read >= ttl:
                known.value = resolve()
                known.read = time.monotonic()
            value: _T = known.value
            return value

    def __reduce__(self) -> tuple[type[Remembered], tuple[int]]:
        return Remembered, (self._most,)


def ttl_seconds(value: float) -> float:
    """Return *value* as a time to live; raises InvalidConfig for one below 0."""
    if value < 0:
        raise InvalidConfig(f"ttl is a number of seconds from 0 up, not {value}")
    return float(value)

"""Ask again when a storage is busy or a connection breaks, and tell of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig
from nixery_core.events import EventCallback, StorageRetried, ignore_events

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Retrying:
    """Sends a request until it succeeds, fails for good, or has failed too often.

    The pause doubles each time and is up to twice as long by chance, so that many clients of a
    busy storage do not come back in one moment.  By default six tries take at most 25 seconds,
    beside what the requests themselves take.

    >>> def busy(attempt: int) -> str:
    ...     if attempt < 2:
    ...         raise ConnectionResetError("reset by peer")
    ...     return f"try {attempt}"
    >>> events: list = []
    >>> retrying = Retrying(pause=0.001, on_event=events.append)
    >>> retrying("get", "index.json", busy, lambda error: isinstance(error, ConnectionError))
    'try 2'
    >>> [event.attempt for event in events]
    [1]
    """

    attempts: int = 6
    """How often a request is sent at most, 1 or more."""
    pause: float = 0.4
    """Seconds before the second try at least; each later pause is twice as long."""
    longest: float = 20.0
    """The longest pause, seconds."""
    on_event: EventCallback = attrs.field(default=ignore_events, repr=False)
    """Gets a StorageRetried for each pause; may be called from any thread."""

    def __attrs_post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidConfig(f"a request is sent at least once, not {self.attempts} times")

    def __call__(
        self, operation: str, key: str, request: Callable[[int], _T], transient: Callable[[Exception], bool]
    ) -> _T:
        """Return what *request* returns; it is given the number of the try, from 1 on.

        Args:
            operation: What is asked for, for the event.
            key: On which storage key, for the event.
            request: Sends the request once.
            transient: Tells whether what it raised may go away by itself.
        """
        attempt = 1
        while True:
            try:
                return request(attempt)
            except Exception as error:
                if attempt >= self.attempts or not transient(error):
                    raise
                delay = min(self.pause * 2.0 ** (attempt - 1), self.longest) * random.uniform(1.0, 2.0)  # noqa: S311
                reason = redact(f"{type(error).__name__}: {error}")
                self.on_event(StorageRetried(operation=operation, key=key, attempt=attempt, delay=delay, reason=reason))
            time.sleep(delay)
            attempt += 1

"""A way to stop a build from another thread."""

from __future__ import annotations

import threading

from nixery_core.errors import Cancelled


class Cancellation:
    """A token that one thread cancels and the working threads look at.

    >>> token = Cancellation()
    >>> token.cancel("no one waits any more")
    >>> token.check()
    Traceback (most recent call last):
    nixery_core.errors.Cancelled: the build was cancelled: no one waits any more
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reason = ""

    def cancel(self, reason: str = "") -> None:
        """Ask the work to stop; a second call changes nothing."""
        if not self._event.is_set():
            self._reason = reason
            self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Cancelled if :meth:`cancel` was called."""
        if self._event.is_set():
            raise Cancelled("the build was cancelled" + (f": {self._reason}" if self._reason else ""))

    def wait(self, seconds: float) -> bool:
        """Sleep up to *seconds*; return True at once when cancelled."""
        return self._event.wait(seconds)

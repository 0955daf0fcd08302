"""A way to stop a build from another thread."""

from __future__ import annotations

import threading
import weakref

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
        self._lock = threading.Lock()
        self._children: weakref.WeakSet[Cancellation] = weakref.WeakSet()

    def cancel(self, reason: str = "") -> None:
        """Ask the work to stop; a second call changes nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._reason = reason
            self._event.set()
            children = list(self._children)
        for child in children:
            child.cancel(reason)

    def child(self) -> Cancellation:
        """Return a token that is cancelled with this one, and can be cancelled alone."""
        child = Cancellation()
        with self._lock:
            self._children.add(child)
            cancelled = self._event.is_set()
        if cancelled:
            child.cancel(self._reason)
        return child

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

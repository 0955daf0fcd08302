"""The beginning and the end of a registry: images that are built early, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from nixery_core.server.builds import Builds
from nixery_core.server.replies import Message, Receive, Scope, Send
from nixery_core.server.threads import Threads

_log = logging.getLogger(__name__)


class Deadline:
    """How much time is left once something has begun to stop.

    >>> now = [0.0]
    >>> deadline = Deadline(30, clock=lambda: now[0])
    >>> deadline.begin()
    >>> now[0] = 10.0
    >>> deadline.begin()
    >>> deadline.remaining()
    20.0
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end: float | None = None

    def begin(self) -> None:
        """The time runs from now on; a second call changes nothing."""
        if self._end is None:
            self._end = self._clock() + self._seconds

    def remaining(self) -> float:
        """Return the seconds that are left; all of them before :meth:`begin`."""
        return self._seconds if self._end is None else max(self._end - self._clock(), 0.0)


def _nothing() -> None:
    pass


class Lifecycle:
    """An application that starts work at its beginning, and drains its builds at its end.

    At the end no new build is taken, those that run go on until the *deadline*, and the others are
    cancelled: their leases are given back, so another replica takes them over at once.

    Args:
        application: The registry.
        builds: Its builds.
        deadline: How long builds go on.
        background: What runs beside the requests, from the start until it is done.
        on_start: Called when the application starts.
        on_stop: Called in a thread when no build is left, before the application ends.
    """

    def __init__(
        self,
        application: Callable[[Scope, Receive, Send], Awaitable[None]],
        builds: Builds,
        deadline: Deadline,
        *,
        background: Callable[[], Awaitable[None]] | None = None,
        on_start: Callable[[], None] = _nothing,
        on_stop: Callable[[], None] = _nothing,
    ) -> None:
        self._application = application
        self._builds = builds
        self._deadline = deadline
        self._background = background
        self._on_start = on_start
        self._on_stop = on_stop
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the life of the server."""
        if scope["type"] != "lifespan":
            await self._application(scope, receive, send)
            return

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._start()
            else:
                await self._stop()
            return message

        await self._application(scope, watched, send)

    def _start(self) -> None:
        self._on_start()
        if self._background is not None:
            self._task = asyncio.ensure_future(self._work(self._background))

    async def _work(self, background: Callable[[], Awaitable[None]]) -> None:
        try:
            await background()
        except Exception:  # noqa: BLE001 (logged; the registry serves without it)
            _log.exception("the work in the background failed")

    async def _stop(self) -> None:
        self._deadline.begin()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        left = len(self._builds.active())
        if left:
            _log.info("waiting up to %.0f s for %d builds", self._deadline.remaining(), left)
        threads = Threads(1)
        await threads.run(self._builds.close, self._deadline.remaining())
        await threads.run(self._on_stop)

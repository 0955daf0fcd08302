"""Calls that wait for storage or source, away from the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

_T = TypeVar("_T")


class Threads:
    """Runs short synchronous calls, a few at once, in threads that go away when they are idle."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None
        self._shared: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """Return what *function* returns; raises what it raises."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._most)
        call = functools.partial(function, *arguments, **named)
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)

    async def share(self, key: Hashable, start: Callable[[], Awaitable[_T]]) -> _T:
        """Return what *start* gives; whoever asks with the same *key* meanwhile gets the same."""
        task = self._shared.get(key)
        if task is None:

            async def work() -> _T:
                return await start()

            task = asyncio.create_task(work())
            self._shared[key] = task
            task.add_done_callback(functools.partial(self._done, key))
        # one client that goes away does not end it for the others
        result: _T = await asyncio.shield(task)
        return result

    def _done(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._shared.pop(key, None)
        if not task.cancelled():
            # where every client has left, nobody else looks at it
            task.exception()

"""A function of many things at once, without holding all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# how many results may wait for the slowest of them
_AHEAD = 4


def each(function: Callable[[_In], _Out], things: Iterable[_In], *, workers: int) -> Iterator[_Out]:
    """Give *function* of each of *things*, in their order, computed by *workers* threads.

    Only as many *things* are taken as are needed to keep the threads busy, so they may be a listing
    without an end.  The first exception is raised in its place; then no thread is left.

    >>> list(each(abs, [-1, 2, -3], workers=2))
    [1, 2, 3]
    """
    waiting: deque[Future[_Out]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="nixery-core-keeping")
    try:
        for thing in things:
            waiting.append(pool.submit(function, thing))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

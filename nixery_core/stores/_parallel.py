"""Many questions at once, a bounded number of them, in threads that end with the last answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def in_threads(ask: Callable[[_Item], _Answer], items: Iterable[_Item], *, threads: int) -> Iterator[_Answer]:
    """Give what *ask* returns for each of *items*, in the order in which the answers come.

    *items* is taken a little ahead of the answers, so an endless iterator will do, and one that
    grows by what was answered.  The first error ends everything; so does closing the iterator.
    """
    done: SimpleQueue[Future[_Answer]] = SimpleQueue()
    running = 0
    pool = ThreadPoolExecutor(threads, "nixery-core-cache")
    try:
        for item in items:
            if running >= 4 * threads:
                running -= 1
                yield done.get().result()
            pool.submit(ask, item).add_done_callback(done.put)
            running += 1
        while running:
            running -= 1
            yield done.get().result()
    finally:
        pool.shutdown(cancel_futures=True)

"""One build while it runs: its threads, its events, its cancellation, its layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import attrs

from nixery_core._shared_layers import SharedLayers
from nixery_core.cancellation import Cancellation
from nixery_core.events import BuildEvent, EventCallback
from nixery_core.layer_stream import Helpers


@attrs.frozen
class Run:
    """What one build shares between its stages and threads."""

    emit: EventCallback
    cancellation: Cancellation
    pool: ThreadPoolExecutor
    layers: SharedLayers
    """What is being written: by this build alone, or by all images of a batch."""

    def of_image(self, emit: EventCallback) -> Run:
        """Return what one image of a batch shares: events and cancellation of its own, the layers of all."""
        return attrs.evolve(self, emit=emit, cancellation=self.cancellation.child())


@contextmanager
def running(
    on_event: EventCallback,
    cancellation: Cancellation | None,
    *,
    workers: int,
    executor: Executor | None,
) -> Iterator[Run]:
    """Hold the threads of one build; whatever ends it, none of them is left."""
    token = Cancellation() if cancellation is None else cancellation.child()
    token.check()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="nixery-core")
    try:
        layers = SharedLayers(pool, Helpers(pool, workers), executor, token)
        yield Run(_one_at_a_time(on_event), token, pool, layers)
    except BaseException:
        token.cancel("the build failed")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_at_a_time(callback: EventCallback) -> EventCallback:
    lock = threading.Lock()

    def emit(event: BuildEvent) -> None:
        with lock:
            callback(event)

    return emit

"""One build while it runs: its threads, its events, its cancellation, its layer jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled
from nixery_core.events import BuildEvent, EventCallback, LayerBuilt, LayerCached, LayerStarted
from nixery_core.layer_writer import BuiltLayer, LayerJob, build_layer

# how soon a cancellation is seen while all layers are being written elsewhere, seconds
_POLL = 0.5


@attrs.frozen
class Run:
    """What one build shares between its stages and threads."""

    emit: EventCallback
    cancellation: Cancellation
    pool: ThreadPoolExecutor
    executor: Executor | None
    """Where layers are written instead of in the pool."""


@contextmanager
def running(
    on_event: EventCallback, cancellation: Cancellation | None, *, workers: int, executor: Executor | None
) -> Iterator[Run]:
    """Hold the threads of one build; whatever ends it, none of them is left."""
    token = Cancellation() if cancellation is None else cancellation.child()
    token.check()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="nixery-core")
    try:
        yield Run(_one_at_a_time(on_event), token, pool, executor)
    except BaseException:
        token.cancel("the build failed")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def write_layers(jobs: Sequence[LayerJob], run: Run) -> list[BuiltLayer]:
    """Write every layer; return them in any order.

    The first failure cancels the others, and is raised when none of them reads store paths any more.
    """
    # the largest first: no worker begins it when the others are done
    ordered = sorted(jobs, key=lambda job: (-job.nar_size, job.layer_key))
    pending: set[Future[BuiltLayer]] = set()
    built: list[BuiltLayer] = []
    try:
        for job in ordered:
            pending.add(_submit(job, run))
        while pending:
            done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
            run.cancellation.check()
            _raise_first_cause(done)
            for future in done:
                layer = future.result()
                emit_built(layer, run)
                built.append(layer)
    except BaseException:
        run.cancellation.cancel("another layer failed")
        for future in pending:
            future.cancel()
        wait(pending)
        raise
    return built


def emit_cached(layer: BuiltLayer, run: Run) -> None:
    """Tell that a layer need not be written."""
    blob = layer.descriptor
    run.emit(LayerCached(layer_key=layer.layer_key, digest=str(blob.digest), size=blob.size))


def emit_built(layer: BuiltLayer, run: Run) -> None:
    """Tell that a layer is in the storage."""
    blob = layer.descriptor
    run.emit(LayerBuilt(layer_key=layer.layer_key, digest=str(blob.digest), diff_id=str(layer.diff_id), size=blob.size))


def _submit(job: LayerJob, run: Run) -> Future[BuiltLayer]:
    if run.executor is None:
        return run.pool.submit(_build_here, job, run)
    run.emit(LayerStarted(layer_key=job.layer_key, nar_size=job.nar_size))
    return run.executor.submit(build_layer, job)


def _build_here(job: LayerJob, run: Run) -> BuiltLayer:
    run.cancellation.check()
    run.emit(LayerStarted(layer_key=job.layer_key, nar_size=job.nar_size))
    return build_layer(job, on_event=run.emit, cancellation=run.cancellation)


def _raise_first_cause(done: set[Future[BuiltLayer]]) -> None:
    failures = [error for future in done if (error := future.exception()) is not None]
    if failures:
        # what was cancelled because of another failure is not the cause
        raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])


def _one_at_a_time(callback: EventCallback) -> EventCallback:
    lock = threading.Lock()

    def emit(event: BuildEvent) -> None:
        with lock:
            callback(event)

    return emit

"""Layers that are being written, each once however many images need it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled, NixeryError, StorageError, WorkerError
from nixery_core.events import EventCallback, LayerBuilt, LayerCached, LayerStarted
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import BuiltLayer, LayerCache, LayerJob, build_layer

# how soon a cancellation is seen while all layers are being written elsewhere, seconds
_POLL = 0.5
REMEMBERED = 1 << 16
"""Most finished layers that are remembered, about 1 kB each; others are found in the layer cache."""


@attrs.define(eq=False)
class _Needed:
    """A layer that is being written."""

    future: Future[BuiltLayer]
    token: Cancellation
    images: int = 1
    """How many wait for it."""


@attrs.frozen(eq=False)
class SharedLayers:
    """Writes layers in the threads of a pool, or wherever an executor has them written.

    A layer that is asked for while it is being written is waited for, and one that was written is
    remembered.
    """

    pool: ThreadPoolExecutor
    helpers: Helpers
    """The same threads, for single chunks of layers: they take them when no layer waits."""
    executor: Executor | None
    """Where layers are written instead of in the pool."""
    cancellation: Cancellation
    """Of everything that is written here."""
    _lock: threading.RLock = attrs.field(factory=threading.RLock, init=False)
    _running: dict[str, _Needed] = attrs.field(factory=dict, init=False)
    _finished: dict[str, BuiltLayer] = attrs.field(factory=dict, init=False)

    def known(self, layer_key: str, cache: LayerCache) -> BuiltLayer | None:
        """Return a layer that was written here or is in *cache*, or None; raises StorageError."""
        with self._lock:
            found = self._finished.get(layer_key)
        return found or cache.find(layer_key)

    def forget(self) -> None:
        """Look for every layer in the storage again: blobs were removed from it."""
        with self._lock:
            self._finished.clear()

    def write(
        self, jobs: Sequence[LayerJob], *, cache: LayerCache, emit: EventCallback, cancellation: Cancellation
    ) -> dict[str, BuiltLayer]:
        """Return every layer by its key, when all are written; what an executor wrote is looked for in *cache*.

        The first failure is raised when no layer is being written any more that nobody else waits for.
        """
        needed: dict[Future[BuiltLayer], tuple[_Needed, bool]] = {}
        built: dict[str, BuiltLayer] = {}
        try:
            # the largest first: no worker begins it when the others are done
            for job in sorted(jobs, key=lambda job: (-job.nar_size, job.layer_key)):
                cancellation.check()
                found, mine = self._join(job, emit)
                needed[found.future] = found, mine
            pending = set(needed)
            while pending:
                done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                cancellation.check()
                for layer, mine in self._results(done, needed, cache):
                    (emit_built if mine else emit_cached)(layer, emit)
                    built[layer.layer_key] = layer
        except BaseException:
            self._leave([found for found, _ in needed.values()])
            raise
        return built

    def _join(self, job: LayerJob, emit: EventCallback) -> tuple[_Needed, bool]:
        """Return the layer of *job*, and whether this call began it."""
        with self._lock:
            found = self._running.get(job.layer_key)
            if found is not None:
                found.images += 1
                return found, False
            finished = self._finished.get(job.layer_key)
            token = self.cancellation.child()
            if finished is not None:
                future: Future[BuiltLayer] = Future()
                future.set_result(finished)
                return _Needed(future, token), False
            found = _Needed(self._submit(job, token, emit), token)
            self._running[job.layer_key] = found
            found.future.add_done_callback(lambda _: self._done(job.layer_key, found))
            return found, True

    def _submit(self, job: LayerJob, token: Cancellation, emit: EventCallback) -> Future[BuiltLayer]:
        if self.executor is None:
            return self.pool.submit(_build_here, job, token, emit, self.helpers)
        emit(LayerStarted(layer_key=job.layer_key, nar_size=job.nar_size))
        try:
            return self.executor.submit(build_layer, job)
        except Exception as error:
            # an executor that was shut down or lost its workers has exceptions of its own
            raise _worker_error(error) from error

    def _done(self, layer_key: str, found: _Needed) -> None:
        with self._lock:
            if self._running.get(layer_key) is found:
                del self._running[layer_key]
            future = found.future
            if not future.cancelled() and future.exception() is None:
                self._finished[layer_key] = future.result()
                if len(self._finished) > REMEMBERED:
                    del self._finished[next(iter(self._finished))]

    def _leave(self, needed: Sequence[_Needed]) -> None:
        """Stop what nobody else waits for, and return when it has stopped."""
        with self._lock:
            for found in needed:
                found.images -= 1
            abandoned = [found for found in needed if found.images == 0 and not found.future.done()]
            gone = {id(found) for found in abandoned}
            for key in [key for key, found in self._running.items() if id(found) in gone]:
                del self._running[key]
        for found in abandoned:
            found.token.cancel("the layer is not needed any more")
        # what could be cancelled never began, and some executors never tell
        wait([found.future for found in abandoned if not found.future.cancel()])

    def _results(
        self,
        done: set[Future[BuiltLayer]],
        needed: dict[Future[BuiltLayer], tuple[_Needed, bool]],
        cache: LayerCache,
    ) -> list[tuple[BuiltLayer, bool]]:
        failures = [error for future in done if (error := self._failure(future)) is not None]
        if failures:
            # what was cancelled because of another failure is not the cause
            raise next((error for error in failures if not isinstance(error, Cancelled)), failures[0])
        results = [(future.result(), needed[future][1]) for future in done]
        if self.executor is not None:
            for layer, _ in results:
                if cache.find(layer.layer_key) is None:
                    raise StorageError(
                        f"a worker wrote the layer {layer.descriptor.digest}, but it is not in this storage",
                        hint="every worker has to reach the same storage under the same URL",
                        key=layer.layer_key,
                    )
        return results

    def _failure(self, future: Future[BuiltLayer]) -> BaseException | None:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None or isinstance(error, NixeryError) or self.executor is None:
            return error
        if not isinstance(error, Exception):
            return error
        wrapped = _worker_error(error)
        wrapped.__cause__ = error
        return wrapped


def emit_cached(layer: BuiltLayer, emit: EventCallback) -> None:
    """Tell that a layer need not be written."""
    blob = layer.descriptor
    emit(LayerCached(layer_key=layer.layer_key, digest=str(blob.digest), size=blob.size))


def emit_built(layer: BuiltLayer, emit: EventCallback) -> None:
    """Tell that a layer is in the storage."""
    blob = layer.descriptor
    emit(LayerBuilt(layer_key=layer.layer_key, digest=str(blob.digest), diff_id=str(layer.diff_id), size=blob.size))


def _build_here(job: LayerJob, token: Cancellation, emit: EventCallback, helpers: Helpers) -> BuiltLayer:
    token.check()
    emit(LayerStarted(layer_key=job.layer_key, nar_size=job.nar_size))
    return build_layer(job, on_event=emit, cancellation=token, helpers=helpers)


def _worker_error(error: Exception) -> WorkerError:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return WorkerError(
        f"the executor did not write a layer: {text}",
        hint="see the logs of its workers; they need this version of nixery-core and enough memory",
    )

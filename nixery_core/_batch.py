"""Many images in one go: which are in work, what becomes of each, and how all of them stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

import attrs

from nixery_core._run import Run
from nixery_core.errors import NixeryError
from nixery_core.events import BuildEvent, EventCallback, ImageEvent
from nixery_core.image import Image
from nixery_core.model.image import ImageSpec
from nixery_core.sources import PackageSource, Pin

# how soon a cancellation is seen while no image is done, seconds
_POLL = 0.5


@attrs.frozen(kw_only=True)
class BatchResult:
    """What became of one image of a batch: it has an image or an error, never both."""

    index: int
    """Its place in the batch, from 0."""
    spec: ImageSpec
    image: Image | None
    error: NixeryError | None


class PinnedTags:
    """The tags of a batch, each resolved once."""

    def __init__(self, source: PackageSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._pins: dict[str, Pin] = {}

    def pin(self, tag: str) -> Pin:
        """Return what *tag* stands for in this batch; raises as the source does."""
        with self._lock:
            pin = self._pins.get(tag)
            if pin is None:
                pin = self._pins[tag] = self._source.pin(tag)
            return pin


def build_batch(
    specs: Iterable[ImageSpec],
    build: Callable[[ImageSpec, Run], Image],
    running: AbstractContextManager[Run],
    *,
    at_once: int,
) -> Iterator[BatchResult]:
    """Give the result of *build* for each of *specs* as they are done, *at_once* of them in work.

    However the iterator ends, also when nobody asks for more, no thread of it is left.
    """
    with running as run:
        threads = ThreadPoolExecutor(at_once, thread_name_prefix="nixery-batch")
        waiting = enumerate(specs)
        pending: dict[Future[BatchResult], int] = {}
        try:
            more = True
            while more or pending:
                run.cancellation.check()
                while more and len(pending) < at_once:
                    index, spec = next(waiting, (-1, None))
                    more = spec is not None
                    if spec is not None:
                        pending[threads.submit(_one, index, spec, build, run)] = index
                done, _ = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=pending.__getitem__):
                    del pending[future]
                    result = future.result()
                    # what was stopped with the whole batch has no result of its own
                    run.cancellation.check()
                    yield result
        except BaseException:
            run.cancellation.cancel("the batch ended")
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _one(index: int, spec: ImageSpec, build: Callable[[ImageSpec, Run], Image], run: Run) -> BatchResult:
    own = run.of_image(_labelled(run.emit, index, f"{spec.name}:{spec.tag}"))
    try:
        return BatchResult(index=index, spec=spec, image=build(spec, own), error=None)
    except NixeryError as error:
        return BatchResult(index=index, spec=spec, image=None, error=error)
    except BaseException:
        own.cancellation.cancel("the build failed")
        raise


def _labelled(emit: EventCallback, index: int, image: str) -> EventCallback:
    def labelled(event: BuildEvent) -> None:
        emit(ImageEvent(index=index, image=image, event=event))

    return labelled

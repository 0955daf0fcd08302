"""From an image specification to an image in the storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager

from nixery_core._batch import BatchResult, PinnedTags, build_batch
from nixery_core._image_work import ImageWork
from nixery_core._run import Run, running
from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidConfig
from nixery_core.events import (
    EventCallback,
    SourceResolved,
    ignore_events,
)
from nixery_core.image import Image, ImagePlan
from nixery_core.layering import UnitsLayerer
from nixery_core.layering.layerer import DEFAULT_BUDGET, Layerer, check_budget
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.nix import Nix
from nixery_core.sources import CacheKey, PackageSource, Pin
from nixery_core.storage.backend import Backend
from nixery_core.stores.realiser import Realiser, RealiserSource


class ImageBuilder:
    """Builds images of one package source into one storage.

    A builder holds no threads, processes or open files between calls, and may be used by several
    threads at once.

    Args:
        source: Where packages come from.
        backend: Where blobs, names and cache entries go.
        realiser: How names become store paths; by default the source's own way, or else the Nix of this machine.
        layerer: How a closure is split into layers.
        popularity: What the layerer knows of the world outside the image.
        codec: Name of the compression: ``gzip``, ``gzip-fast``, ``zstd``, ``none``, with a level as in ``zstd:19``.
        budget: Most layers of store paths, 1..124; the customisation layer comes on top.
        base_layers: Layers of the base that the caller puts these images on: with the budget and the
            customisation layer no more than 125.
        executor: Where layers are written; by default threads of this process, ``workers`` many.
            It gets module-level functions with picklable arguments, so a process pool or a cluster will do.
        workers: Threads of one build; by default as many as there are processors.
        verify: Whether store paths are checked against their narHash while they are written; a layer
            that is in the storage already is not read again.
        on_event: Follows every build; called from several threads, one call at a time.
        on_image: Called with the image ID (the digest of the configuration) and the closure of each image
            that is built, before any name stands for it.  An image from the cache is not told again.

    Raises:
        InvalidConfig: For an unknown codec.
        LayerBudgetError: For a budget outside 1..124, or more than 125 layers in all.
    """

    def __init__(
        self,
        source: PackageSource,
        backend: Backend,
        *,
        realiser: Realiser | None = None,
        layerer: Layerer | None = None,
        popularity: Popularity | None = None,
        codec: str = "gzip",
        budget: int = DEFAULT_BUDGET,
        base_layers: int = 0,
        executor: Executor | None = None,
        workers: int | None = None,
        verify: bool = False,
        on_event: EventCallback = ignore_events,
        on_image: Callable[[Digest, Closure], object] | None = None,
    ) -> None:
        check_budget(budget, beside=base_layers)
        # the customisation layer
        check_budget(budget, beside=base_layers + 1)
        self._source = source
        self._backend = backend
        self._work = ImageWork(
            backend=backend,
            realiser=_realiser_of(source) if realiser is None else realiser,
            layerer=UnitsLayerer() if layerer is None else layerer,
            popularity=Popularity() if popularity is None else popularity,
            budget=budget,
            codec_name=codec,
            verify=verify,
            on_image=on_image,
        )
        self._executor = executor
        self._workers = workers or os.cpu_count() or 1
        self._on_event = on_event

    @property
    def backend(self) -> Backend:
        """Where the images are."""
        return self._backend

    @property
    def source(self) -> PackageSource:
        """Where packages come from."""
        return self._source

    def cache_key(self, spec: ImageSpec, pin: Pin) -> CacheKey | None:
        """Return the identity of everything that decides the bytes of the image, or None where the source moves."""
        return self._work.cache_key(spec, pin)

    def plan(
        self, spec: ImageSpec, *, on_event: EventCallback | None = None, cancellation: Cancellation | None = None
    ) -> ImagePlan:
        """Return how the image would be split into layers, and which of them are stored; stores nothing.

        Sizes are known only of store paths that exist, so this builds or fetches what is missing.
        Raises like :meth:`build`.
        """
        with self._running(on_event, cancellation) as run:
            return self._work.telling(run.emit).plan(spec, self._pin(spec, run), run)

    def find(
        self,
        spec: ImageSpec,
        *,
        pin: Pin | None = None,
        publish: bool = True,
        on_event: EventCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Image | None:
        """Return the image if the manifest cache has it with every blob, or None; Nix is never called.

        The arguments and errors are those of :meth:`build`.
        """
        with self._running(on_event, cancellation) as run:
            return self._work.telling(run.emit).find(spec, pin or self._pin(spec, run), run, publish=publish)

    def build(
        self,
        spec: ImageSpec,
        *,
        pin: Pin | None = None,
        publish: bool = True,
        on_event: EventCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Image:
        """Build the image, or find it in the cache; return it when every blob of it is stored.

        A source at an immutable revision is looked up first, and then Nix is not called.

        Args:
            spec: What the image is asked to be.
            pin: What the source resolved the tag to, where the caller has asked it already.
            publish: Whether the name and tag of *spec* come to stand for the image.
            on_event: Follows this build, in the place of the builder's own callback.
            cancellation: Stops this build from another thread.

        Raises:
            SourceError, RevisionNotFound, InvalidTag: The source cannot be resolved.
            PackageError: Some names cannot be used; all of them are listed.
            NixError: Evaluation or a build failed, or took too long.
            StoreReadError: A store path cannot be read or archived.
            StorageError: The storage failed; nothing half-written is left.
            Cancelled: Through *cancellation*.
        """
        with self._running(on_event, cancellation) as run:
            work = self._work.telling(run.emit)
            return work.build_or_find(spec, pin or self._pin(spec, run), run, publish=publish)

    def build_many(
        self,
        specs: Iterable[ImageSpec],
        *,
        at_once: int = 4,
        publish: bool = True,
        on_event: EventCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[BatchResult]:
        """Build many images; give each with its image or its error, as they are done.

        Every distinct layer is written once, however many images need it at the same time.  One
        image that fails does no harm to the others.  Each tag is resolved once, so all images of a
        tag are of one revision.  Nothing happens before the first result is asked for; *specs* is
        read as images are begun, so neither it nor the results need be in memory as a whole.

        Args:
            specs: The images, in the order in which they are begun.
            at_once: How many images are in work at the same time; layers are written by the threads
                or the executor of the builder, whatever this is.
            publish: Whether the names and tags come to stand for the images.
            on_event: Gets ImageEvents, with the events of :meth:`build` in them.
            cancellation: Stops the whole batch from another thread.

        Raises:
            InvalidConfig: For an *at_once* below 1.
            Cancelled: Through *cancellation*; images that are done stay.
        """
        if at_once < 1:
            raise InvalidConfig(f"at least one image is built at once, not {at_once}")
        tags = PinnedTags(self._source)

        def one(spec: ImageSpec, run: Run) -> Image:
            pin = tags.pin(spec.tag)
            run.emit(SourceResolved(source=pin.describe(), revision=pin.revision))
            return self._work.telling(run.emit).build_or_find(spec, pin, run, publish=publish)

        return build_batch(specs, one, self._running(on_event, cancellation), at_once=at_once)

    def _pin(self, spec: ImageSpec, run: Run) -> Pin:
        run.cancellation.check()
        pin = self._source.pin(spec.tag)
        run.emit(SourceResolved(source=pin.describe(), revision=pin.revision))
        return pin

    def _running(
        self, on_event: EventCallback | None, cancellation: Cancellation | None
    ) -> AbstractContextManager[Run]:
        return running(
            self._on_event if on_event is None else on_event,
            cancellation,
            workers=self._workers,
            executor=self._executor,
        )


def _realiser_of(source: PackageSource) -> Realiser:
    return source.realiser() if isinstance(source, RealiserSource) else Nix()

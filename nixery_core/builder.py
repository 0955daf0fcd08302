"""From an image specification to an image in the storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager

from nixery_core._batch import BatchResult, PinnedTags, build_batch
from nixery_core._run import Run, running
from nixery_core._shared_layers import emit_built, emit_cached
from nixery_core.archive import ARCHIVE_VERSION
from nixery_core.assemble import container_config, image_config, image_manifest, layer_comment
from nixery_core.cancellation import Cancellation
from nixery_core.compression import codec as codec_by_name
from nixery_core.customisation import CUSTOMISATION_VERSION, Customisation, customise
from nixery_core.errors import InvalidConfig, ObjectNotFound
from nixery_core.events import (
    ClosureResolved,
    EventCallback,
    ImageStored,
    LayersPlanned,
    LayerStarted,
    ManifestCached,
    PackagesResolved,
    SourceResolved,
    ignore_events,
)
from nixery_core.image import Image, ImagePlan, PlannedLayer
from nixery_core.layer_writer import BuiltLayer, LayerCache, LayerJob, LayerWriter
from nixery_core.layering import UnitsLayerer
from nixery_core.layering.layerer import DEFAULT_BUDGET, Layerer, LayerPlan, check_budget, check_plans
from nixery_core.layering.popularity import Popularity
from nixery_core.manifest_cache import CachedImage, FoundImage, ManifestCache
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import canonical_json
from nixery_core.model.package import ResolvedPackage
from nixery_core.nix import Nix
from nixery_core.sources import CacheKey, PackageSource, Pin
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.layout import publish_ref
from nixery_core.storage.pins import pinned
from nixery_core.stores.realiser import Realisation, Realiser, RealiserSource

# the second build has all but what was removed during the first, and nothing old that could be removed
_ATTEMPTS = 3


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
        self._realiser: Realiser = _realiser_of(source) if realiser is None else realiser
        self._layerer: Layerer = UnitsLayerer() if layerer is None else layerer
        self._popularity = Popularity() if popularity is None else popularity
        self._codec = codec_by_name(codec)
        self._codec_name = codec
        self._budget = budget
        self._executor = executor
        self._workers = workers or os.cpu_count() or 1
        self._verify = verify
        self._on_event = on_event
        self._on_image = on_image
        self._layer_cache = LayerCache(backend)
        self._manifest_cache = ManifestCache(backend)

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
        return CacheKey.of(
            pin,
            {
                "spec": canonical_json(spec.identity()),
                "realiser": self._realiser.id,
                "layerer": self._layerer.id,
                "budget": str(self._budget),
                "popularity": self._popularity.digest,
                "codec": self._codec.id,
                "archive": str(ARCHIVE_VERSION),
                "customisation": str(CUSTOMISATION_VERSION),
            },
        )

    def plan(
        self, spec: ImageSpec, *, on_event: EventCallback | None = None, cancellation: Cancellation | None = None
    ) -> ImagePlan:
        """Return how the image would be split into layers, and which of them are stored; stores nothing.

        Sizes are known only of store paths that exist, so this builds or fetches what is missing.
        Raises like :meth:`build`.
        """
        with self._running(on_event, cancellation) as run:
            pin = self._pin(spec, run)
            packages = self._resolve(spec, pin, run)
            with self._realised(packages, run) as realisation:
                plans = self._plans(realisation.closure, run)
            keys = [self._layer_key(plan) for plan in plans]
            built = list(run.pool.map(self._layer_cache.find, keys))
            return ImagePlan(
                spec=spec,
                revision=pin.revision,
                packages=packages,
                closure=realisation.closure,
                layers=tuple(
                    PlannedLayer(plan=plan, layer_key=key, built=layer)
                    for plan, key, layer in zip(plans, keys, built, strict=True)
                ),
            )

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
            pin = pin or self._pin(spec, run)
            return self._find(spec, pin, self.cache_key(spec, pin), run, publish=publish)

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
            return self._build_or_find(spec, pin or self._pin(spec, run), run, publish=publish)

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
            return self._build_or_find(spec, pin, run, publish=publish)

        return build_batch(specs, one, self._running(on_event, cancellation), at_once=at_once)

    def _build_or_find(self, spec: ImageSpec, pin: Pin, run: Run, *, publish: bool) -> Image:
        key = self.cache_key(spec, pin)
        found = self._find(spec, pin, key, run, publish=publish)
        return found or self._build_held(spec, pin, key, run, publish=publish)

    def _find(self, spec: ImageSpec, pin: Pin, key: CacheKey | None, run: Run, *, publish: bool) -> Image | None:
        found = self._manifest_cache.find(key, run.pool) if key else None
        if found is None:
            return None
        image = self._from_cache(spec, pin, found)
        if publish:
            try:
                publish_ref(self._backend, spec.name, spec.tag, image.descriptor)
            except ObjectNotFound:
                # removed since it was found
                return None
        run.emit(ManifestCached(digest=str(found.entry.manifest.digest)))
        run.emit(ImageStored(digest=str(image.descriptor.digest)))
        return image

    def _build_held(self, spec: ImageSpec, pin: Pin, key: CacheKey | None, run: Run, *, publish: bool) -> Image:
        for attempt in range(1, _ATTEMPTS + 1):
            image = self._build(spec, pin, key, run)
            try:
                self._hold(image, publish=publish)
            except ObjectNotFound:
                # a collector of garbage took an old blob that this build had found in the storage: now
                # that it is gone it is written again, and what is new stays
                if attempt == _ATTEMPTS:
                    raise
                run.layers.forget()
                continue
            run.emit(ImageStored(digest=str(image.descriptor.digest)))
            return image
        raise AssertionError("not reached")

    def _hold(self, image: Image, *, publish: bool) -> None:
        """Have the new *image* held by its name, or by its cache entry, with every blob that it counts on."""
        if publish:
            publish_ref(self._backend, image.spec.name, image.spec.tag, image.descriptor)
            return
        with pinned(self._backend, (image.descriptor, image.manifest.config, *image.manifest.layers)):
            pass

    def _build(self, spec: ImageSpec, pin: Pin, key: CacheKey | None, run: Run) -> Image:
        packages = self._resolve(spec, pin, run)
        with self._realised(packages, run) as realisation:
            plans = self._plans(realisation.closure, run)
            customisation = customise(
                packages,
                closure=realisation.closure,
                reader=realisation.reader,
                platform=spec.platform,
                user=spec.config.user,
                files=spec.files,
                on_event=run.emit,
            )
            run.cancellation.check()
            layers = [
                *self._layers(plans, realisation, run),
                self._customisation_layer(customisation, run),
            ]
        container = container_config(spec, pin, env=customisation.env, shell=customisation.shell)
        comments = [*(layer_comment(plan) for plan in plans), "symbolic links and system files"]
        config = image_config(spec, container, layers, comments)
        manifest = image_manifest(pin, config, layers)
        put_blob(self._backend, config.to_bytes(), media_type=config.MEDIA_TYPE)
        descriptor = put_blob(self._backend, manifest.to_bytes(), media_type=manifest.MEDIA_TYPE)
        run.cancellation.check()
        if self._on_image is not None:
            self._on_image(manifest.config.digest, realisation.closure)
        if key is not None:
            entry = CachedImage(manifest=descriptor, layers=tuple(layers))
            kept = self._manifest_cache.store(key, entry, run.pool)
            if kept.manifest != descriptor:
                # another builder was first; every client gets its image
                found = self._manifest_cache.find(key, run.pool)
                if found is not None:
                    return self._from_cache(spec, pin, found)
        return Image(
            spec=spec,
            revision=pin.revision,
            descriptor=descriptor,
            manifest=manifest,
            config=config,
            layers=tuple(layers),
            cached=False,
        )

    def _from_cache(self, spec: ImageSpec, pin: Pin, found: FoundImage) -> Image:
        return Image(
            spec=spec,
            revision=pin.revision,
            descriptor=found.entry.manifest,
            manifest=found.manifest,
            config=found.config,
            layers=found.entry.layers,
            cached=True,
        )

    def _pin(self, spec: ImageSpec, run: Run) -> Pin:
        run.cancellation.check()
        pin = self._source.pin(spec.tag)
        run.emit(SourceResolved(source=pin.describe(), revision=pin.revision))
        return pin

    def _resolve(self, spec: ImageSpec, pin: Pin, run: Run) -> tuple[ResolvedPackage, ...]:
        optional = [name for name in spec.optional if name not in spec.packages]
        packages = self._realiser.evaluate(
            pin, spec.packages, optional, spec.platform, on_event=run.emit, cancellation=run.cancellation
        )
        run.emit(PackagesResolved(attributes=tuple(package.attribute for package in packages)))
        return packages

    @contextmanager
    def _realised(self, packages: Sequence[ResolvedPackage], run: Run) -> Iterator[Realisation]:
        with self._realiser.realise(packages, on_event=run.emit, cancellation=run.cancellation) as realisation:
            closure = realisation.closure
            run.emit(ClosureResolved(paths=len(closure), nar_size=closure.nar_size))
            yield realisation

    def _plans(self, closure: Closure, run: Run) -> tuple[LayerPlan, ...]:
        run.cancellation.check()
        plans = check_plans(self._layerer.plan(closure, self._popularity, self._budget), closure, self._budget)
        run.emit(LayersPlanned(layers=len(plans)))
        return plans

    def _layer_key(self, plan: LayerPlan) -> str:
        return plan.key(archive_version=ARCHIVE_VERSION, codec_id=self._codec.id)

    def _layers(self, plans: Sequence[LayerPlan], realisation: Realisation, run: Run) -> list[BuiltLayer]:
        closure = realisation.closure
        keys = [self._layer_key(plan) for plan in plans]
        layers: dict[str, BuiltLayer] = {}
        for key, cached in zip(keys, run.pool.map(run.layers.known, keys), strict=True):
            if cached is not None:
                layers[key] = cached
                emit_cached(cached, run.emit)
        jobs = [
            LayerJob(
                paths=plan.paths,
                nar_size=plan.nar_size,
                layer_key=key,
                reader=realisation.reader,
                backend=self._backend.ref,
                codec=self._codec_name,
                nar_hashes=closure.nar_hashes(plan.paths) if self._verify else {},
            )
            for plan, key in zip(plans, keys, strict=True)
            if key not in layers
        ]
        layers |= run.layers.write(jobs, emit=run.emit, cancellation=run.cancellation)
        return [layers[key] for key in keys]

    def _customisation_layer(self, customisation: Customisation, run: Run) -> BuiltLayer:
        key = customisation.key(archive_version=ARCHIVE_VERSION, codec_id=self._codec.id)
        cached = self._layer_cache.find(key)
        if cached is not None:
            emit_cached(cached, run.emit)
            return cached
        size = sum(entry.size for entry in customisation.entries)
        run.emit(LayerStarted(layer_key=key, nar_size=size))
        writer = LayerWriter(self._backend, self._codec, run.layers.helpers)
        built = self._layer_cache.store(
            writer.write(customisation.entries, layer_key=key, on_event=run.emit, cancellation=run.cancellation)
        )
        emit_built(built, run.emit)
        return built

    def _running(
        self, on_event: EventCallback | None, cancellation: Cancellation | None
    ) -> AbstractContextManager[Run]:
        return running(
            self._on_event if on_event is None else on_event,
            cancellation,
            workers=self._workers,
            executor=self._executor,
            cache=self._layer_cache,
        )


def _realiser_of(source: PackageSource) -> Realiser:
    return source.realiser() if isinstance(source, RealiserSource) else Nix()

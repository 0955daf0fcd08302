"""The work on one image, within a build that is running: what is cached, what is built, what holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs

from nixery_core._run import Run
from nixery_core._shared_layers import emit_built, emit_cached
from nixery_core.archive import ARCHIVE_VERSION
from nixery_core.assemble import container_config, image_config, image_manifest, layer_comment
from nixery_core.compression import Codec
from nixery_core.compression import codec as codec_by_name
from nixery_core.customisation import CUSTOMISATION_VERSION, Customisation, customise
from nixery_core.errors import ObjectNotFound
from nixery_core.events import (
    ClosureResolved,
    EventCallback,
    ImageStored,
    LayersPlanned,
    LayerStarted,
    ManifestCached,
    PackagesResolved,
)
from nixery_core.image import Image, ImagePlan, PlannedLayer
from nixery_core.layer_writer import BuiltLayer, LayerCache, LayerJob, LayerWriter
from nixery_core.layering.layerer import Layerer, LayerPlan, check_plans
from nixery_core.layering.popularity import Popularity
from nixery_core.manifest_cache import CachedImage, FoundImage, ManifestCache
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import canonical_json
from nixery_core.model.package import ResolvedPackage
from nixery_core.sources import CacheKey, Pin
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.capabilities import with_events
from nixery_core.storage.layout import publish_ref
from nixery_core.storage.pins import pinned
from nixery_core.stores.realiser import Realisation, Realiser

# the second build has all but what was removed during the first, and nothing old that could be removed
_ATTEMPTS = 3


@attrs.frozen(kw_only=True, eq=False)
class ImageWork:
    """Plans, finds and builds images with one set of choices; every method works within a run.

    Its storage is silent until :meth:`telling` gives it a listener.
    """

    backend: Backend
    realiser: Realiser
    layerer: Layerer
    popularity: Popularity
    budget: int
    codec_name: str
    codec: Codec = attrs.field(init=False)
    verify: bool
    on_image: Callable[[Digest, Closure], object] | None
    layer_cache: LayerCache = attrs.field(init=False)
    manifest_cache: ManifestCache = attrs.field(init=False)

    @codec.default
    def _codec_of_name(self) -> Codec:
        return codec_by_name(self.codec_name)

    @layer_cache.default
    def _layer_cache_of_backend(self) -> LayerCache:
        return LayerCache(self.backend)

    @manifest_cache.default
    def _manifest_cache_of_backend(self) -> ManifestCache:
        return ManifestCache(self.backend)

    def cache_key(self, spec: ImageSpec, pin: Pin) -> CacheKey | None:
        """Return the identity of everything that decides the bytes of the image, or None where the source moves."""
        return CacheKey.of(
            pin,
            {
                "spec": canonical_json(spec.identity()),
                "realiser": self.realiser.id,
                "layerer": self.layerer.id,
                "budget": str(self.budget),
                "popularity": self.popularity.digest,
                "codec": self.codec.id,
                "archive": str(ARCHIVE_VERSION),
                "customisation": str(CUSTOMISATION_VERSION),
            },
        )

    def telling(self, on_event: EventCallback) -> ImageWork:
        """Return the same work, over the same connections, whose storage tells *on_event* what it has to send again."""
        backend = with_events(self.backend, on_event)
        return self if backend is self.backend else attrs.evolve(self, backend=backend)

    def plan(self, spec: ImageSpec, pin: Pin, run: Run) -> ImagePlan:
        """Return how the image would be split into layers, and which of them are stored."""
        packages = self._resolve(spec, pin, run)
        with self._realised(packages, run) as realisation:
            plans = self._plans(realisation.closure, run)
        keys = [self._layer_key(plan) for plan in plans]
        built = list(run.pool.map(self.layer_cache.find, keys))
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

    def build_or_find(self, spec: ImageSpec, pin: Pin, run: Run, *, publish: bool) -> Image:
        """Return the image when every blob of it is stored, and held by its name or its cache entry."""
        return self.find(spec, pin, run, publish=publish) or self._build_held(spec, pin, run, publish=publish)

    def find(self, spec: ImageSpec, pin: Pin, run: Run, *, publish: bool) -> Image | None:
        """Return the image if the manifest cache has it with every blob, or None."""
        key = self.cache_key(spec, pin)
        found = self.manifest_cache.find(key, run.pool) if key else None
        if found is None:
            return None
        image = self._from_cache(spec, pin, found)
        if publish:
            try:
                publish_ref(self.backend, spec.name, spec.tag, image.descriptor)
            except ObjectNotFound:
                # removed since it was found
                return None
        run.emit(ManifestCached(digest=str(found.entry.manifest.digest)))
        run.emit(ImageStored(digest=str(image.descriptor.digest)))
        return image

    def _build_held(self, spec: ImageSpec, pin: Pin, run: Run, *, publish: bool) -> Image:
        for attempt in range(1, _ATTEMPTS + 1):
            image = self._build(spec, pin, run)
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
            publish_ref(self.backend, image.spec.name, image.spec.tag, image.descriptor)
            return
        with pinned(self.backend, (image.descriptor, image.manifest.config, *image.manifest.layers)):
            pass

    def _build(self, spec: ImageSpec, pin: Pin, run: Run) -> Image:
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
        put_blob(self.backend, config.to_bytes(), media_type=config.MEDIA_TYPE)
        descriptor = put_blob(self.backend, manifest.to_bytes(), media_type=manifest.MEDIA_TYPE)
        run.cancellation.check()
        if self.on_image is not None:
            self.on_image(manifest.config.digest, realisation.closure)
        key = self.cache_key(spec, pin)
        if key is not None:
            entry = CachedImage(manifest=descriptor, layers=tuple(layers))
            kept = self.manifest_cache.store(key, entry, run.pool)
            if kept.manifest != descriptor:
                # another builder was first; every client gets its image
                found = self.manifest_cache.find(key, run.pool)
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

    def _resolve(self, spec: ImageSpec, pin: Pin, run: Run) -> tuple[ResolvedPackage, ...]:
        optional = [name for name in spec.optional if name not in spec.packages]
        packages = self.realiser.evaluate(
            pin, spec.packages, optional, spec.platform, on_event=run.emit, cancellation=run.cancellation
        )
        run.emit(PackagesResolved(attributes=tuple(package.attribute for package in packages)))
        return packages

    @contextmanager
    def _realised(self, packages: Sequence[ResolvedPackage], run: Run) -> Iterator[Realisation]:
        with self.realiser.realise(packages, on_event=run.emit, cancellation=run.cancellation) as realisation:
            closure = realisation.closure
            run.emit(ClosureResolved(paths=len(closure), nar_size=closure.nar_size))
            yield realisation

    def _plans(self, closure: Closure, run: Run) -> tuple[LayerPlan, ...]:
        run.cancellation.check()
        plans = check_plans(self.layerer.plan(closure, self.popularity, self.budget), closure, self.budget)
        run.emit(LayersPlanned(layers=len(plans)))
        return plans

    def _layer_key(self, plan: LayerPlan) -> str:
        return plan.key(archive_version=ARCHIVE_VERSION, codec_id=self.codec.id)

    def _layers(self, plans: Sequence[LayerPlan], realisation: Realisation, run: Run) -> list[BuiltLayer]:
        closure = realisation.closure
        keys = [self._layer_key(plan) for plan in plans]
        layers: dict[str, BuiltLayer] = {}
        known = run.pool.map(lambda key: run.layers.known(key, self.layer_cache), keys)
        for key, cached in zip(keys, known, strict=True):
            if cached is not None:
                layers[key] = cached
                emit_cached(cached, run.emit)
        jobs = [
            LayerJob(
                paths=plan.paths,
                nar_size=plan.nar_size,
                layer_key=key,
                reader=realisation.reader,
                backend=self.backend.ref,
                codec=self.codec_name,
                nar_hashes=closure.nar_hashes(plan.paths) if self.verify else {},
            )
            for plan, key in zip(plans, keys, strict=True)
            if key not in layers
        ]
        layers |= run.layers.write(jobs, cache=self.layer_cache, emit=run.emit, cancellation=run.cancellation)
        return [layers[key] for key in keys]

    def _customisation_layer(self, customisation: Customisation, run: Run) -> BuiltLayer:
        key = customisation.key(archive_version=ARCHIVE_VERSION, codec_id=self.codec.id)
        cached = self.layer_cache.find(key)
        if cached is not None:
            emit_cached(cached, run.emit)
            return cached
        size = sum(entry.size for entry in customisation.entries)
        run.emit(LayerStarted(layer_key=key, nar_size=size))
        writer = LayerWriter(self.backend, self.codec, run.layers.helpers)
        built = self.layer_cache.store(
            writer.write(customisation.entries, layer_key=key, on_event=run.emit, cancellation=run.cancellation)
        )
        emit_built(built, run.emit)
        return built

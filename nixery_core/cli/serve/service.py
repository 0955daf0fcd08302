"""From settings to a registry: its builder, its application, and all that stands around it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import attrs

from nixery_core.builder import ImageBuilder
from nixery_core.cache_source import BinaryCacheSource
from nixery_core.cli.cache_argument import CacheOptions, parse_index
from nixery_core.cli.serve.settings import ServeSettings
from nixery_core.cli.source_argument import parse_import_args, parse_source
from nixery_core.errors import NixeryError, StorageError
from nixery_core.events import ignore_events
from nixery_core.layering.popularity import Popularity
from nixery_core.layering.popularity_file import load_popularity
from nixery_core.model.platform import Platform
from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_nix
from nixery_core.served import ServedCounter
from nixery_core.server import registry_app
from nixery_core.server.builds import Builds
from nixery_core.server.endpoints import operation_routes
from nixery_core.server.health import Health
from nixery_core.server.lifecycle import Deadline, Lifecycle
from nixery_core.server.metrics import Metrics
from nixery_core.server.observed import Observed
from nixery_core.server.observers import all_of, log_builds
from nixery_core.server.page import IndexNames, Page
from nixery_core.server.sendfile import Sendfile
from nixery_core.server.warm_up import WarmUp, warm_up_list
from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import with_events
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.realiser import RealiserSource

_log = logging.getLogger(__name__)

Application = Callable[[Any, Any, Any], Any]


def _nothing() -> None:
    pass


@attrs.frozen(kw_only=True)
class Service:
    """A registry that is ready to be served."""

    application: Application
    """For any ASGI server that runs the lifespan."""
    builder: ImageBuilder
    builds: Builds
    deadline: Deadline
    """How long builds go on once the server stops; it begins with the lifespan's end, or before."""


def build_service(
    settings: ServeSettings, *, metrics_folder: str | None = None, on_start: Callable[[], None] = _nothing
) -> Service:
    """Return the registry of *settings*; nothing is read or built yet but the popularity.

    Args:
        settings: What is served, and how.
        metrics_folder: Where the processes of one server share their metrics; None for one process.
        on_start: Called when the server starts the application.

    Raises:
        NixeryError: For settings that cannot be met.
    """
    metrics = Metrics(version=metadata.version("nixery-core"), folder=metrics_folder) if settings.metrics else None
    backend = open_backend(settings.store, **settings.store_options)
    if metrics is not None:
        # what no build asks for, such as blobs for clients; builds tell of their own requests
        backend = with_events(backend, metrics.on_event)
    counter = ServedCounter(backend) if settings.count_served else None
    builder = image_builder(settings, backend, metrics, counter)
    images = warm_up_list(settings.warm_up)
    deadline = Deadline(settings.stop_timeout)
    platforms = [Platform.parse(text) for text in settings.platforms]
    page = _page(settings, builder, platforms) if settings.page else None
    observers = [log_builds, *(one.on_build for one in (metrics, page) if one is not None)]
    registry = registry_app(
        builder,
        platforms=platforms,
        max_concurrent_builds=settings.max_builds,
        max_queued_builds=settings.max_queued,
        patience=settings.patience,
        abandon_after=settings.abandon_after,
        lease_ttl=settings.lease_ttl,
        redirect_expires=settings.redirect_expires,
        on_served=None if counter is None else counter.record,
        on_build=all_of(*observers),
        routes=[*operation_routes(Health(builder), metrics), *(page.routes if page else [])],
    )
    builds: Builds = registry.state.builds
    for one in (metrics, page):
        if one is not None:
            one.watch(builds)
    life = _Life(on_start, page, counter)
    lifecycle = Lifecycle(
        registry,
        builds,
        deadline,
        background=WarmUp(registry, images).run if images else None,
        on_start=life.start,
        on_stop=life.stop,
    )
    # the outermost, because it has to see what the server itself hands in
    observed = Sendfile(Observed(lifecycle, metrics=metrics))
    return Service(application=observed, builder=builder, builds=builds, deadline=deadline)


class _Life:
    """What begins and ends with the server, beside its builds."""

    def __init__(self, on_start: Callable[[], None], page: Page | None, counter: ServedCounter | None) -> None:
        self._on_start = on_start
        self._page = page
        self._counter = counter

    def start(self) -> None:
        self._on_start()
        if self._counter is not None:
            self._counter.start(on_failure=_not_counted)

    def stop(self) -> None:
        if self._page is not None:
            self._page.close()
        if self._counter is not None:
            try:
                self._counter.stop()
            except StorageError as error:
                _not_counted(error)


def _not_counted(error: NixeryError) -> None:
    _log.warning("what was served cannot be counted: %s", error)


def _page(settings: ServeSettings, builder: ImageBuilder, platforms: Sequence[Platform]) -> Page:
    index = parse_index(settings.index) if settings.index else None
    if index is None and isinstance(builder.source, BinaryCacheSource):
        index = builder.source.index
    return Page(
        builder,
        names=None if index is None else IndexNames(index),
        platforms=platforms,
        # without one, clients reach it where the browser does
        address=settings.public_url.partition("://")[2].rstrip("/"),
        encrypted=settings.public_url.startswith("https://") if settings.public_url else None,
    )


def image_builder(
    settings: ServeSettings, backend: Backend, metrics: Metrics | None = None, counter: ServedCounter | None = None
) -> ImageBuilder:
    """Return the builder of *settings*; raises NixeryError."""
    arguments = parse_import_args(settings.import_args or None, allow_unfree=settings.allow_unfree)
    caches = CacheOptions(
        more=settings.caches, trusted_keys=settings.trusted_keys, allow_unsigned=settings.allow_unsigned
    )
    source = parse_source(settings.source, arguments, caches)
    return ImageBuilder(
        source,
        backend,
        realiser=None if isinstance(source, RealiserSource) else _nix(settings),
        codec=settings.codec,
        budget=settings.budget,
        popularity=load_popularity(settings.popularity) if settings.popularity else Popularity(),
        on_image=None if counter is None else counter.describe,
        on_event=ignore_events if metrics is None else metrics.on_event,
    )


def _nix(settings: ServeSettings) -> Nix:
    if settings.source == "demo":
        # it needs no network and no set-up, here as with `nixery-core demo`
        nix = demo_nix(settings.nix_store or "nixery-demo/nix")
        return attrs.evolve(nix, timeout=settings.nix_timeout, options={**nix.options, **settings.nix_options})
    nix = Nix(options=dict(settings.nix_options), timeout=settings.nix_timeout)
    return attrs.evolve(nix, store=settings.nix_store) if settings.nix_store else nix


def application() -> Application:
    """Return the registry of the environment's settings, for ASGI servers that call a factory.

    The logging is the server's, and so is the end: it has to run the lifespan.
    """
    return build_service(ServeSettings.from_environment(os.environ)).application

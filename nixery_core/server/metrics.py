"""What a registry counts, in the form that Prometheus reads.

Each :class:`Metrics` has a registry of its own: two applications of one process do not mix.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from nixery_core import events
from nixery_core.errors import (
    EvaluationError,
    NixBuildError,
    NixeryError,
    NixTimeout,
    PackageError,
    SourceError,
    StorageError,
)
from nixery_core.events import BuildEvent
from nixery_core.server.builds import Build, Builds, BuildState
from nixery_core.server.stages import FIRST, stage_after

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (PackageError, "packages"),
    (EvaluationError, "evaluation"),
    (NixBuildError, "build"),
    (NixTimeout, "timeout"),
    (SourceError, "source"),
    (StorageError, "storage"),
    (NixeryError, "other"),
)


def failure_kind(error: BaseException) -> str:
    """Return the word for a failure that metrics and the page use.

    >>> failure_kind(NixTimeout("too slow"))
    'timeout'
    """
    return next((word for kind, word in _FAILURES if isinstance(error, kind)), "internal")


@attrs.define
class _Stage:
    name: str
    since: float


@attrs.frozen
class _Request:
    """The metrics of one kind of request, looked up once."""

    count: Counter
    seconds: Histogram
    sent: Counter


class Metrics:
    """Counts builds and requests; give :meth:`on_build` and :meth:`on_event` to whoever builds.

    Args:
        version: Of the software, shown as a label.
        folder: Where several processes of one server share their numbers; the environment variable
            PROMETHEUS_MULTIPROC_DIR has to name the same folder before prometheus_client is imported.
        clock: Seconds that only grow.

    >>> metrics = Metrics(version="1.0")
    >>> metrics.request("manifest", "GET", 200, seconds=0.01, sent=512)
    >>> [line for line in metrics.text()[1].splitlines() if b"requests_total{" in line]
    [b'nixery_http_requests_total{method="GET",route="manifest",status="200"} 1.0']
    """

    def __init__(
        self, *, version: str = "", folder: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[int, _Stage] = {}
        self._requests: dict[tuple[str, str, int], _Request] = {}
        self._builds: Builds | None = None
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"nixery_{name}", text, tuple(labels), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"nixery_{name}", text, tuple(labels), registry=registry, multiprocess_mode="livesum")

        def histogram(
            name: str, text: str, labels: Iterable[str] = (), buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"nixery_{name}", text, tuple(labels), registry=registry, buckets=buckets)

        self._processes = gauge("processes", "Processes that serve.", ["version"])
        self._done = counter("builds", "Builds that are over, by result.", ["result"])
        self._failures = counter("build_failures", "Builds that failed, by kind of failure.", ["kind"])
        self._running = gauge("builds_running", "Builds that run now.")
        self._queued = gauge("builds_queued", "Builds that wait for their turn now.")
        self._seconds = histogram("build_seconds", "How long builds ran, by result.", ["result"])
        self._stage_seconds = histogram("build_stage_seconds", "How long each stage of a build took.", ["stage"])
        self._hits = counter("cache_hits", "Images and layers that were found in the storage.", ["what"])
        self._misses = counter("cache_misses", "Images and layers that had to be made.", ["what"])
        self._layer_bytes = counter("layer_bytes", "Size of the layers of builds, packed.", ["origin"])
        self._retries = counter("storage_retries", "Requests to the storage that were sent again.", ["operation"])
        self._http = counter("http_requests", "Requests that were answered.", ["route", "method", "status"])
        self._http_seconds = histogram(
            "http_request_seconds", "Time from a request to the end of its answer.", ["route"], _REQUEST_SECONDS
        )
        self._http_bytes = counter("http_response_bytes", "Bytes of bodies that were sent.", ["route"])
        self._in_flight = gauge("http_requests_in_flight", "Requests that are being answered now.")
        self._processes.labels(version).set(1)
        # a rate needs a zero to begin with
        for result in ("built", "cached", "failed", "cancelled"):
            self._done.labels(result)
        for what in ("image", "layer"):
            self._hits.labels(what)
            self._misses.labels(what)
        for origin in ("cached", "written"):
            self._layer_bytes.labels(origin)

    def watch(self, builds: Builds) -> None:
        """Count the builds that run and wait among *builds*."""
        self._builds = builds

    def on_build(self, build: Build, event: BuildEvent | None) -> None:
        """Follow a build: a :data:`~nixery_core.server.builds.BuildObserver`."""
        if event is not None:
            self._stage(build.number, stage_after(event))
            self.on_event(event)
            return
        self._count()
        if build.state is BuildState.RUNNING:
            self._stage(build.number, FIRST)
        elif build.over:
            with self._lock:
                stage = self._stages.pop(build.number, None)
            if stage is not None and build.error is None:
                self._stage_seconds.labels(stage.name).observe(self._clock() - stage.since)
            self._over(build)

    def on_event(self, event: BuildEvent) -> None:
        """Count what an event tells: also the callback of an :class:`~nixery_core.builder.ImageBuilder`."""
        match event:
            case events.ManifestCached():
                self._hits.labels("image").inc()
            case events.PackagesResolved():
                self._misses.labels("image").inc()
            case events.LayerCached(size=size):
                self._hits.labels("layer").inc()
                self._layer_bytes.labels("cached").inc(size)
            case events.LayerBuilt(size=size):
                self._misses.labels("layer").inc()
                self._layer_bytes.labels("written").inc(size)
            case events.StorageRetried(operation=operation):
                self._retries.labels(operation).inc()

    def request_begins(self) -> None:
        """Count a request that is being answered."""
        self._in_flight.inc()

    def request_ends(self) -> None:
        """Count it no longer."""
        self._in_flight.dec()

    def request(self, route: str, method: str, status: int, *, seconds: float, sent: int) -> None:
        """Count a request that was answered with *sent* bytes."""
        key = (route, method, status)
        found = self._requests.get(key)
        if found is None:
            found = self._requests[key] = _Request(
                self._http.labels(route, method, str(status)),
                self._http_seconds.labels(route),
                self._http_bytes.labels(route),
            )
        found.count.inc()
        found.seconds.observe(seconds)
        found.sent.inc(sent)

    def text(self, accept: str = "") -> tuple[str, bytes]:
        """Return the type and the bytes of the answer to a scrape."""
        registry = self._registry
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        else:
            self._count()
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    def _stage(self, number: int, name: str | None) -> None:
        if name is None:
            return
        now = self._clock()
        with self._lock:
            before = self._stages.get(number)
            self._stages[number] = _Stage(name, now)
        if before is not None:
            self._stage_seconds.labels(before.name).observe(now - before.since)

    def _over(self, build: Build) -> None:
        if build.error is None:
            result = "cached" if build.image is not None and build.image.cached else "built"
        elif build.state is BuildState.CANCELLED:
            result = "cancelled"
        else:
            result = "failed"
            self._failures.labels(failure_kind(build.error)).inc()
        self._done.labels(result).inc()
        if build.started is not None and build.finished is not None:
            self._seconds.labels(result).observe(max(build.finished - build.started, 0.0))

    def _count(self) -> None:
        if self._builds is None:
            return
        states = [build.state for build in self._builds.active()]
        self._running.set(states.count(BuildState.RUNNING))
        self._queued.set(states.count(BuildState.QUEUED))

"""Requests that are sent again, told to whoever follows the build that sends them."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixery_core import layer_writer
from nixery_core.builder import ImageBuilder
from nixery_core.cli.serve import service
from nixery_core.cli.serve.settings import ServeSettings
from nixery_core.events import BuildEvent, ImageEvent, StorageRetried, ignore_events
from nixery_core.model.image import ImageSpec
from nixery_core.server import registry_app
from nixery_core.server.metrics import Metrics
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.retrying import Retrying
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import MemorySource, memory_builder, memory_packages
from nixery_core.testing.memory_realiser import MemoryRealiser

SPEC = ImageSpec.parse("git/hello")


class Requests:
    """What was asked of the storage, by operation and key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counted: Counter[tuple[str, str]] = Counter()

    def add(self, operation: str, key: str) -> None:
        with self._lock:
            self.counted[operation, key] += 1

    def taken(self) -> Counter[tuple[str, str]]:
        """Return what was asked since the last time."""
        with self._lock:
            counted, self.counted = self.counted, Counter()
        return counted


@attrs.frozen
class BusyBackend:
    """A storage that breaks the connection at the first try of every request."""

    inner: FsspecBackend
    requests: Requests = attrs.field(factory=Requests)
    retrying: Retrying = attrs.field(factory=lambda: Retrying(pause=0.0))

    @property
    def ref(self):
        return self.inner.ref

    def with_events(self, on_event):
        return attrs.evolve(self, retrying=attrs.evolve(self.retrying, on_event=on_event))

    def open_blob(self):
        return BusyWriter(self, self.inner.open_blob())

    def again(self, operation, key, request):
        self.requests.add(operation, key)

        def second_time_lucky(attempt):
            if attempt == 1:
                raise ConnectionResetError("reset by peer")
            return request()

        return self.retrying(operation, key, second_time_lucky, lambda error: isinstance(error, ConnectionResetError))

    def create(self, key, data, **options):
        return self.again("create", key, lambda: self.inner.create(key, data, **options))

    def replace(self, key, data, **options):
        return self.again("put", key, lambda: self.inner.replace(key, data, **options))

    def get(self, key):
        return self.again("get", key, lambda: self.inner.get(key))

    def stream(self, key, start=0, end=None):
        return self.again("get", key, lambda: self.inner.stream(key, start, end))

    def stat(self, key):
        return self.again("stat", key, lambda: self.inner.stat(key))

    def list(self, prefix):
        return self.again("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, key):
        return self.again("delete", key, lambda: self.inner.delete(key))


@attrs.frozen
class BusyWriter:
    """A blob on its way into a busy storage."""

    backend: BusyBackend
    inner: object

    def write(self, data):
        self.inner.write(data)

    def commit(self, digest):
        self.backend.again("put", f"blobs/{digest}", lambda: self.inner.commit(digest))

    def cancel(self):
        self.inner.cancel()


class Told:
    """The repetitions that one follower was told of."""

    def __init__(self) -> None:
        self.events: list[BuildEvent] = []

    def __call__(self, event: BuildEvent) -> None:
        self.events.append(event)

    @property
    def counted(self) -> Counter[tuple[str, str]]:
        """By operation and key, as the storage counts its requests."""
        events = [event.event if isinstance(event, ImageEvent) else event for event in self.events]
        return Counter((event.operation, event.key) for event in events if isinstance(event, StorageRetried))


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BusyBackend:
    """A busy storage, which layers find as well: they open the storage by its reference."""
    busy = BusyBackend(FsspecBackend(f"memory://busy-{request.node.name}"))
    monkeypatch.setattr(layer_writer, "open_backend", lambda url, **options: busy)
    return busy


def test_every_request_of_a_build_is_told(backend: BusyBackend) -> None:
    """Caches, layers, configuration, manifest, pins and names: each request that is sent again is an event."""
    told = Told()
    memory_builder(backend, "git", "hello").build(SPEC, on_event=told)
    sent = backend.requests.taken()
    assert told.counted == sent
    # the build had all of them to send
    areas = {key.partition("/")[0] + "/" + key.split("/")[1] for _, key in sent if key.count("/")}
    assert {"cache/manifests", "cache/layers", "gc/pins", "refs/git"} <= areas
    assert {operation for operation, _ in sent} == {"create", "put", "get", "stat", "list", "delete"}


def test_every_request_of_a_search_and_of_a_plan_is_told(backend: BusyBackend) -> None:
    """What is found in the caches was asked for as well."""
    builder = memory_builder(backend, "git", "hello")
    assert builder.find(SPEC) is None
    builder.build(SPEC)
    backend.requests.taken()
    for act in (builder.find, builder.plan, builder.build):
        told = Told()
        assert act(SPEC, on_event=told)
        assert told.counted == backend.requests.taken() != Counter()


def test_each_image_of_a_batch_has_its_own(backend: BusyBackend) -> None:
    """In a batch a repetition is an event of the image that sent the request, and none is lost."""
    told = Told()
    specs = [ImageSpec.parse(name) for name in ("git", "hello", "git/hello")]
    results = list(memory_builder(backend, "git", "hello").build_many(specs, on_event=told))
    assert all(result.image for result in results)
    assert told.counted == backend.requests.taken()
    names = {"git": 0, "hello": 1, "git/hello": 2}
    for event in told.events:
        assert isinstance(event, ImageEvent)
        if isinstance(event.event, StorageRetried) and event.event.key.startswith("refs/"):
            assert names[event.event.key.removeprefix("refs/").partition("/_tags")[0]] == event.index


def test_with_an_executor_the_builder_tells_of_its_own_requests(backend: BusyBackend) -> None:
    """Layers that an executor writes tell nothing; that they are in the storage is asked, and told."""
    told = Told()
    with ThreadPoolExecutor(1) as executor:
        realiser = MemoryRealiser(memory_packages("git", "hello"))
        ImageBuilder(MemorySource(), backend, realiser=realiser, executor=executor).build(SPEC, on_event=told)
    sent = backend.requests.taken()
    assert told.counted <= sent
    entries = [key for operation, key in told.counted.elements() if operation == "get" and "cache/layers/" in key]
    # before, and after it was written: two layers of store paths; the customisation layer is the builder's own
    assert sorted(Counter(entries).values()) == [1, 2, 2]


def test_the_builder_that_nobody_follows_is_silent(backend: BusyBackend) -> None:
    """Who follows one build hears nothing of another, and the storage of the builder itself has no listener."""
    told = Told()
    builder = memory_builder(backend, "git", "hello")
    builder.build(SPEC, on_event=told)
    heard = len(told.events)
    builder.build(ImageSpec.parse("git"))
    builder.backend.stat("index.json")
    assert len(told.events) == heard
    assert builder.backend.retrying.on_event is ignore_events


def retries_by_operation(metrics_text: bytes) -> dict[str, float]:
    """Return what ``nixery_storage_retries_total`` says."""
    families = text_string_to_metric_families(metrics_text.decode())
    samples = [sample for family in families for sample in family.samples]
    return {one.labels["operation"]: one.value for one in samples if one.name == "nixery_storage_retries_total"}


def test_a_registry_counts_them(backend: BusyBackend) -> None:
    """``nixery_storage_retries_total`` has every request of a build that was sent again."""
    metrics = Metrics(version="1")
    builder = memory_builder(backend, "git", on_event=metrics.on_event)
    app = registry_app(builder, on_build=metrics.on_build, lease_ttl=None)
    with AsgiClient(app) as client:
        assert client.get("/v2/git/manifests/latest").status == 200
    counted = retries_by_operation(metrics.text()[1])
    sent = Counter(operation for operation, _ in backend.requests.taken().elements())
    # reading the manifest for the answer is the registry's own business
    for operation in ("create", "put", "list"):
        assert counted[operation] == sent[operation] > 0


def test_the_command_counts_what_no_build_asks_for_too(backend: BusyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases, manifests and blobs for clients: ``nixery-core serve`` counts every repetition once."""
    monkeypatch.setattr(service, "open_backend", lambda url, **options: backend)
    monkeypatch.setattr(
        service, "image_builder", lambda _, store, metrics, __: memory_builder(store, "git", on_event=metrics.on_event)
    )
    served = service.build_service(ServeSettings(store="memory://busy"))
    with AsgiClient(served.application) as client:
        layer = client.get("/v2/git/manifests/latest").json()["layers"][0]["digest"]
        assert client.get(f"/v2/git/blobs/{layer}").status == 200
        counted = retries_by_operation(client.get("/metrics").body)
    assert counted == Counter(operation for operation, _ in backend.requests.taken().elements())
    assert counted["create"] > 0

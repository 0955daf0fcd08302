"""What surrounds a registry: health, metrics, identities of requests, logs, warm-up and a stop in good order."""

import asyncio
import io
import json
import logging
import threading
import time

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixery_core.cli.serve.logs import JsonFormatter, TextFormatter
from nixery_core.errors import SourceError, StorageError
from nixery_core.server import registry_app
from nixery_core.server.endpoints import operation_routes, route
from nixery_core.server.health import Health
from nixery_core.server.lifecycle import Deadline, Lifecycle
from nixery_core.server.metrics import Metrics
from nixery_core.server.observed import Observed
from nixery_core.server.observers import all_of, log_builds
from nixery_core.server.warm_up import WarmUp, warm_up_list
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import MemorySource, memory_builder


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "images")


def values(metrics):
    """Return every sample of a scrape by its name and labels."""
    families = text_string_to_metric_families(metrics.text()[1].decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def observed(backend, *names, health=None, **more):
    metrics = Metrics(version="1")
    builder = memory_builder(backend, *names)
    routes = operation_routes(health or Health(builder), metrics)
    app = registry_app(builder, on_build=all_of(metrics.on_build, log_builds), routes=routes, **more)
    metrics.watch(app.state.builds)
    return Observed(app, metrics=metrics), metrics, app


class TestMetrics:
    def test_builds_layers_and_requests_are_counted(self, backend):
        """A build, a hit of the memory and a failure show in builds, layers, stages and requests."""
        app, metrics, _ = observed(backend, "git")
        with AsgiClient(app) as client:
            for _ in range(2):
                assert client.get("/v2/git/manifests/latest").status == 200
            assert client.get("/v2/nothing/manifests/latest").status == 404
            layer = client.get("/v2/git/manifests/latest").json()["layers"][0]
            client.get(f"/v2/git/blobs/{layer['digest']}")
            scrape = client.get("/metrics")
        assert scrape.headers["content-type"].startswith("text/plain; version=")
        found = values(metrics)
        assert found["nixery_builds_total", "built"] == 1
        assert found["nixery_builds_total", "failed"] == 1
        assert found["nixery_build_failures_total", "packages"] == 1
        assert found["nixery_layer_bytes_total", "written"] >= layer["size"]
        assert found["nixery_cache_misses_total", "image"] == 1
        for stage in ("evaluate", "realise", "plan", "write"):
            assert found["nixery_build_stage_seconds_count", stage] == 1
        assert found["nixery_http_requests_total", "200", "GET", "manifest"] == 3
        assert found["nixery_http_requests_total", "404", "GET", "manifest"] == 1
        assert found["nixery_http_response_bytes_total", "blob"] == layer["size"]
        assert found["nixery_builds_running",] == found["nixery_builds_queued",] == 0
        assert found["nixery_http_requests_in_flight",] == 0

    def test_an_image_of_the_storage_is_a_hit(self, backend):
        """What another process has built is found in the manifest cache, and counted so."""
        memory_builder(backend, "git").build(_spec("git"))
        metrics = Metrics()
        with AsgiClient(registry_app(memory_builder(backend, "git", on_event=metrics.on_event))) as client:
            assert client.get("/v2/git/manifests/latest").status == 200
        assert values(metrics)["nixery_cache_hits_total", "image"] == 1
        assert values(metrics)["nixery_cache_misses_total", "image"] == 0

    def test_two_do_not_mix(self):
        """Each has a registry of its own, so two applications live in one process."""
        first, second = Metrics(), Metrics()
        first.request("blob", "GET", 200, seconds=1.0, sent=1)
        assert values(first)["nixery_http_requests_total", "200", "GET", "blob"] == 1
        assert ("nixery_http_requests_total", "200", "GET", "blob") not in values(second)

    def test_labels_are_few_whatever_clients_ask(self, backend):
        """Neither paths nor methods of clients become labels without end."""
        app, metrics, _ = observed(backend, "git")
        with AsgiClient(app) as client:
            for number in range(20):
                client.get(f"/v2/{number}/{number}", method=f"M{number}")
        counted = {key[1:]: value for key, value in values(metrics).items() if key[0] == "nixery_http_requests_total"}
        assert counted == {("404", "OTHER", "other"): 20}

    def test_a_queue_shows(self, backend):
        """Builds that run and wait are told apart while they do."""
        app, metrics, registry = observed(backend, "git", "htop", max_concurrent_builds=1, patience=0.2)
        gate = threading.Event()
        builds = registry.state.builds
        builds._builder = _Slow(builds._builder, gate)
        with AsgiClient(app) as client:
            assert client.get("/v2/git/manifests/latest").status == 429
            assert client.get("/v2/htop/manifests/latest").status == 429
            found = values(metrics)
            assert (found["nixery_builds_running",], found["nixery_builds_queued",]) == (1, 1)
            gate.set()
            builds.close(None)
        assert values(metrics)["nixery_builds_total", "built"] == 2


class TestRequests:
    def test_an_identity_is_taken_and_given_back(self, backend):
        """X-Request-Id goes through; without one, or with one that would spoil a log, there is a new one."""
        app, _, _ = observed(backend, "git")
        with AsgiClient(app) as client:
            assert client.get("/v2/", ("X-Request-Id", "abc-1")).headers["x-request-id"] == "abc-1"
            answers = [client.get("/v2/"), client.get("/v2/", ("X-Request-Id", 'a"b')), client.get("/nothing")]
            identities = [answer.headers["x-request-id"] for answer in answers]
            assert all(len(identity) == 32 for identity in identities)
            assert len(set(identities)) == 3
            # manifests are answered with prepared headers, which do not grow
            lines = [client.get("/v2/git/manifests/latest").header_lines for _ in range(2)]
            assert [sum(name == "x-request-id" for name, _ in line) for line in lines] == [1, 1]

    def test_an_answer_without_headers_gets_one_too(self):
        """ASGI lets an application leave out its headers; the identity is there all the same."""

        async def bare(scope, receive, send):
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

        with AsgiClient(Observed(bare)) as client:
            assert client.get("/", ("X-Request-Id", "abc-1")).headers == {"x-request-id": "abc-1"}

    def test_each_is_logged(self, backend, caplog):
        """One line a request, with what one filters by."""
        app, _, _ = observed(backend, "git")
        with caplog.at_level(logging.INFO, "nixery_core.access"), AsgiClient(app) as client:
            client.get("/v2/git/manifests/latest", ("X-Request-Id", "abc-1"))
        (record,) = [record for record in caplog.records if record.name == "nixery_core.access"]
        assert (record.status, record.path, record.client) == (200, "/v2/git/manifests/latest", "127.0.0.1")

    def test_a_mistake_of_ours_is_json_and_logged_under_its_identity(self, backend, caplog):
        """An exception is a 500 whose body names the identity that the log has, and nothing else."""

        async def fails(scope, receive, send):
            raise RuntimeError("secret")

        app = Observed(registry_app(memory_builder(backend, "git"), routes=[route("/fails", fails)]))
        with AsgiClient(app) as client:
            answer = client.get("/fails", ("X-Request-Id", "abc-1"))
        assert answer.status == 500
        assert answer.json()["errors"][0]["detail"] == {"request": "abc-1"}
        assert b"secret" not in answer.body
        assert "abc-1" in caplog.text

    def test_other_methods_are_refused_in_the_words_of_the_registry(self, backend):
        """Routes beside the API answer unknown methods with its JSON, and HEAD without a body."""
        app, _, _ = observed(backend)
        with AsgiClient(app) as client:
            answer = client.get("/healthz", method="POST")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
            assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"
            assert (client.head("/readyz").status, client.head("/readyz").body) == (200, b"")


class TestHealth:
    def test_all_is_well(self, backend):
        """Alive, and ready: storage and source answer."""
        app, _, _ = observed(backend)
        with AsgiClient(app) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            ready = client.get("/readyz")
        assert ready.status == 200
        assert ready.json() == {"status": "ready", "checks": {"storage": "ok", "source": "ok"}}

    @pytest.mark.parametrize("what", ["storage", "source"])
    def test_what_does_not_answer_is_named_without_its_words(self, backend, what, caplog):
        """503 names the part; the reason, which may name a bucket, is in the log alone."""
        with AsgiClient(observed(backend, health=Health(_broken(backend, what)))[0]) as client:
            assert client.get("/healthz").status == 200
            ready = client.get("/readyz")
        assert ready.status == 503
        assert ready.json()["checks"] == {"storage": "ok", "source": "ok"} | {what: "failed"}
        assert b"bucket-x" not in ready.body
        assert "bucket-x" in caplog.text

    def test_probes_cost_little(self, backend):
        """However many probes there are, source and storage are looked at once in a while."""
        builder = memory_builder(backend, "git")
        asked, now = [], [0.0]
        builder._source = _Source(lambda: asked.append(1))
        health = Health(builder, believed=5.0, clock=lambda: now[0])
        for at in (0.0, 1.0, 4.9, 5.1):
            now[0] = at
            assert asyncio.run(health.look()).ready
        assert len(asked) == 2

    def test_a_storage_that_hangs_is_not_ready_in_time(self, backend):
        """The answer comes after the timeout, and further probes start no further calls."""
        gate, asked = threading.Event(), []

        def hang():
            asked.append(1)
            gate.wait(10)

        builder = memory_builder(backend, "git")
        builder._source = _Source(hang)
        health = Health(builder, believed=0.0, timeout=0.05)

        async def probes():
            answers = [(await health.look()).source for _ in range(3)]
            gate.set()
            return answers

        begun = time.monotonic()
        assert asyncio.run(probes()) == [False, False, False]
        assert time.monotonic() - begun < 5
        assert len(asked) == 1


class TestWarmUp:
    def test_names_are_built_as_clients_would(self, backend, caplog):
        """Each name is built and published; one that fails is logged, and the next one built."""
        app = registry_app(memory_builder(backend, "git", "htop"), patience=0.01, retry_after=1)
        with caplog.at_level(logging.INFO):
            asyncio.run(WarmUp(app, warm_up_list(["nothing", "git", "htop:stable"])).run())
        said = [record.getMessage() for record in caplog.records]
        assert said[0].startswith("warm-up: nothing:latest failed: nothing: not found")
        assert said[1:] == ["warm-up: git:latest is there", "warm-up: htop:stable is there"]


class TestLife:
    def test_running_builds_are_finished(self, backend):
        """At the end the application waits for what runs, up to its deadline."""
        app, metrics, gate = _busy(backend, Deadline(20))
        threading.Timer(0.3, gate.set).start()
        asyncio.run(_live(app, "/v2/git/manifests/latest"))
        assert values(metrics)["nixery_builds_total", "built"] == 1

    def test_what_takes_longer_is_handed_back(self, backend):
        """After the deadline builds are cancelled, and their leases are free at once."""
        app, metrics, gate = _busy(backend, Deadline(0.1))
        asyncio.run(_live(app, "/v2/git/manifests/latest"))
        assert values(metrics)["nixery_builds_total", "cancelled"] == 1
        assert list(backend.list("leases/")) == []
        assert not gate.is_set()

    def test_the_background_begins_and_ends_with_it(self, backend):
        """What runs beside the requests is started, and cancelled at the end; its failure stops nothing."""
        told = []

        async def background():
            told.append("begun")
            try:
                await asyncio.sleep(60)
            finally:
                told.append("ended")

        registry = registry_app(memory_builder(backend, "git"))
        app = Lifecycle(registry, registry.state.builds, Deadline(0), background=background)
        asyncio.run(_live(app, "/v2/"))
        assert told == ["begun", "ended"]


class TestLogs:
    def test_a_line_is_one_json_document(self):
        """Message, fields, and exceptions with their secrets masked: one line, whatever they hold."""
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter())
        error = StorageError("line\nhttps://me:hunter2@example.org")
        info = (type(error), error, None)
        record = logging.LogRecord("n", logging.ERROR, "", 1, "a\n%s", ("https://u:p@h/",), info)
        handler.handle(record)
        (line,) = stream.getvalue().splitlines()
        found = json.loads(line)
        assert found["message"] == "a\nhttps://***@h/"
        assert (found["level"], found["logger"]) == ("error", "n")
        assert "StorageError" in found["exception"]
        assert "hunter2" not in line

    def test_a_line_for_a_person_cannot_be_forged(self):
        """A line break in a message does not look like a line of the log."""
        text = TextFormatter().format(logging.makeLogRecord({"msg": "a\n2026-01-01 INFO forged", "levelname": "INFO"}))
        assert "\n  2026" in text


def _spec(name):
    from nixery_core.model.image import ImageSpec

    return ImageSpec.parse(name)


@attrs.define
class _Source:
    """A source that does something first."""

    before: object

    def pin(self, tag):
        self.before()
        return MemorySource().pin(tag)


class _Slow:
    """A builder that waits for a gate, or for its cancellation, before it builds."""

    def __init__(self, builder, gate):
        self._builder = builder
        self._gate = gate

    def __getattr__(self, name):
        return getattr(self._builder, name)

    def build(self, spec, *, cancellation, **named):
        while not self._gate.is_set():
            cancellation.wait(0.02)
            cancellation.check()
        return self._builder.build(spec, cancellation=cancellation, **named)


def _broken(backend, what):
    def fail():
        raise SourceError("bucket-x is gone") if what == "source" else StorageError("bucket-x is gone")

    builder = memory_builder(backend, "git")
    if what == "source":
        builder._source = _Source(fail)
    else:

        class Broken:
            def stat(self, key):
                fail()

        builder._backend = Broken()
    return builder


def _busy(backend, deadline):
    metrics, gate = Metrics(), threading.Event()
    registry = registry_app(memory_builder(backend, "git"), on_build=metrics.on_build, patience=0.1)
    builds = registry.state.builds
    builds._builder = _Slow(builds._builder, gate)
    return Lifecycle(registry, builds, deadline), metrics, gate


async def _live(app, target):
    """Run an application from its start to its end, with one request between."""
    messages = asyncio.Queue()
    told = []

    async def send(message):
        told.append(message["type"])

    await messages.put({"type": "lifespan.startup"})
    life = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, messages.get, send))
    while not told:
        await asyncio.sleep(0.01)
    # the client has no loop of its own here
    client = AsgiClient(app)
    await client.request(target)
    client._runner.close()
    await messages.put({"type": "lifespan.shutdown"})
    await life
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

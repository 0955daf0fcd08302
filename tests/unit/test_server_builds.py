"""Builds behind requests: one of a kind, few at once, an end to every wait."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.cancellation import Cancellation
from nixery_core.errors import (
    Cancelled,
    EvaluationError,
    InvalidConfig,
    InvalidTag,
    NixBuildError,
    NixNotFound,
    NixTimeout,
    PackageError,
    PackageProblem,
    ProblemKind,
    QueueFull,
    RevisionNotFound,
    SourceError,
)
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import INDEX, MANIFEST
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.server import BuildState, registry_app
from nixery_core.server.builds import Builds
from nixery_core.server.documents import DOCKER_LIST, DOCKER_MANIFEST
from nixery_core.server.leases import Leases
from nixery_core.storage.layout import read_ref
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import MemorySource, memory_builder, memory_packages
from nixery_core.testing.memory_realiser import MemoryRealiser

NAMES = ("git", "htop", "vim", "jq")


class Gated:
    """A realiser that counts its calls, and waits at a gate; or fails."""

    id = "gated 1"

    def __init__(self, *, failure=None, open_gate=False):
        self.inner = MemoryRealiser(memory_packages(*NAMES))
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.calls = []
        self.failure = failure
        if open_gate:
            self.gate.set()

    def evaluate(self, pin, packages, optional, platform, *, on_event, cancellation):
        self.calls.append((packages, platform))
        self.started.release()
        while not self.gate.is_set():
            cancellation.check()
            cancellation.wait(0.01)
        if callable(self.failure):
            self.failure(packages, platform)
        elif self.failure is not None:
            raise self.failure
        return self.inner.evaluate(pin, packages, optional, platform, on_event=on_event, cancellation=cancellation)

    def realise(self, packages, *, on_event, cancellation):
        return self.inner.realise(packages, on_event=on_event, cancellation=cancellation)


@pytest.fixture
def backend(tmp_path):
    return open_backend(f"memory://{tmp_path}")


def gated(backend, source=None, **options):
    realiser = Gated(**options)
    return ImageBuilder(source or MemorySource(), backend, realiser=realiser), realiser


def no_threads_left():
    names = ("nixery-core-build", "nixery-core-lease")
    deadline = time.monotonic() + 5
    while any(thread.name in names for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


class TestOneBuild:
    def test_a_thousand_clients_cause_one_build(self, backend):
        """All who ask for one image while it is built get it from that one build."""
        builder, realiser = gated(backend)
        with AsgiClient(registry_app(builder)) as client:

            async def thousand():
                requests = [asyncio.create_task(client.request("/v2/git/manifests/latest")) for _ in range(1000)]
                await asyncio.sleep(0.2)
                realiser.gate.set()
                return await asyncio.gather(*requests)

            responses = client.run(thousand())
        assert {response.status for response in responses} == {200}
        assert len({response.body for response in responses}) == 1
        assert len(realiser.calls) == 1
        no_threads_left()

    def test_two_registries_on_one_storage_build_once(self, backend):
        """A second process waits for the lease of the first, and finds what it built."""
        first, second = gated(backend), gated(backend, open_gate=True)
        one, two = AsgiClient(registry_app(first[0])), AsgiClient(registry_app(second[0]))
        with one, two, ThreadPoolExecutor(2) as pool:
            asked_first = pool.submit(one.get, "/v2/git/manifests/latest")
            assert first[1].started.acquire(timeout=10)
            asked_second = pool.submit(two.get, "/v2/git/manifests/latest")
            time.sleep(0.3)
            first[1].gate.set()
            assert asked_first.result(10).body == asked_second.result(10).body
        assert second[1].calls == []
        assert list(backend.list("leases/")) == []
        no_threads_left()

    def test_a_failure_of_the_holder_is_not_the_end(self, backend):
        """Where the holder of the lease fails, the next one tries itself."""
        first = gated(backend, failure=NixTimeout("too slow", seconds=1))
        second = gated(backend, open_gate=True)
        one, two = AsgiClient(registry_app(first[0])), AsgiClient(registry_app(second[0]))
        with one, two, ThreadPoolExecutor(2) as pool:
            asked_first = pool.submit(one.get, "/v2/git/manifests/latest")
            assert first[1].started.acquire(timeout=10)
            asked_second = pool.submit(two.get, "/v2/git/manifests/latest")
            time.sleep(0.2)
            first[1].gate.set()
            assert asked_first.result(10).status == 422
            assert asked_second.result(10).status == 200

    def test_a_source_that_moves_is_built_each_time_and_agrees_with_itself(self, backend):
        """Without a revision nothing is cached; within the ttl of a tag, HEAD and GET still give one image."""
        builder, realiser = gated(backend, source=MemorySource(None), open_gate=True)
        with AsgiClient(registry_app(builder)) as client:
            head = client.head("/v2/git/manifests/latest")
            assert client.get("/v2/git/manifests/latest").header_lines == head.header_lines
            assert len(realiser.calls) == 1
        with AsgiClient(registry_app(builder, tag_ttl=0)) as client:
            client.get("/v2/git/manifests/latest")
            client.get("/v2/git/manifests/latest")
        assert len(realiser.calls) == 3


class TestBounds:
    def test_few_at_once_and_a_queue_with_an_end(self, backend):
        """Builds beyond the first wait; beyond the queue a client is told when to come again."""
        builder, realiser = gated(backend)
        app = registry_app(builder, max_concurrent_builds=1, max_queued_builds=1, retry_after=7)
        with AsgiClient(app) as client:

            async def three():
                running = [asyncio.create_task(client.request(f"/v2/{name}/manifests/latest")) for name in NAMES[:2]]
                await asyncio.sleep(0.2)
                refused = await client.request("/v2/vim/manifests/latest")
                states = [build.state for build in app.state.builds.active()]
                calls = len(realiser.calls)
                realiser.gate.set()
                return refused, states, calls, await asyncio.gather(*running)

            refused, states, calls, answers = client.run(three())
        assert (refused.status, refused.json()["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
        assert refused.headers["retry-after"] == "7"
        assert states == [BuildState.RUNNING, BuildState.QUEUED]
        assert calls == 1
        assert [answer.status for answer in answers] == [200, 200]

    def test_a_build_goes_on_after_the_patience_of_a_request(self, backend):
        """The client is told to ask again, and finds the image when it does."""
        builder, realiser = gated(backend)
        with AsgiClient(registry_app(builder, patience=0.1, retry_after=3)) as client:
            early = client.get("/v2/git/manifests/latest")
            assert (early.status, early.headers["retry-after"]) == (429, "3")
            realiser.gate.set()
            deadline = time.monotonic() + 10
            while (late := client.get("/v2/git/manifests/latest")).status != 200:
                assert time.monotonic() < deadline
            assert late.headers["content-type"] == MANIFEST
        assert len(realiser.calls) == 1

    def test_what_nobody_waits_for_is_cancelled(self, backend):
        """When the last client has left, the build ends after a while, and nothing of it stays."""
        builder, _ = gated(backend)
        app = registry_app(builder, abandon_after=0.1)
        with AsgiClient(app) as client:

            async def leave_early():
                leave = asyncio.Event()
                request = asyncio.create_task(client.request("/v2/git/manifests/latest", leave=leave))
                await asyncio.sleep(0.1)
                leave.set()
                assert (await request).status == 0
                for _ in range(200):
                    if app.state.builds.recent():
                        return
                    await asyncio.sleep(0.02)

            client.run(leave_early())
            (build,) = app.state.builds.recent()
        assert build.state is BuildState.CANCELLED
        assert "no one waits" in str(build.error)
        assert list(backend.list("leases/")) == []
        no_threads_left()

    def test_a_client_that_comes_back_saves_its_build(self, backend):
        """Who asks again in time is waited for; None never gives up."""
        builder, realiser = gated(backend)
        with AsgiClient(registry_app(builder, patience=0.05, abandon_after=0.3)) as client:

            async def again_and_again():
                for _ in range(8):
                    await client.request("/v2/git/manifests/latest")
                    await asyncio.sleep(0.05)
                realiser.gate.set()
                await asyncio.sleep(0.3)
                return await client.request("/v2/git/manifests/latest")

            assert client.run(again_and_again()).status == 200
        assert len(realiser.calls) == 1

    @pytest.mark.parametrize(
        "options",
        [{"patience": 0}, {"retry_after": 0}, {"max_lookups": 0}, {"max_concurrent_builds": 0}, {"lease_ttl": 0}],
    )
    def test_numbers_that_make_no_sense(self, backend, options):
        """They are refused before anything is started."""
        with pytest.raises(InvalidConfig):
            registry_app(memory_builder(backend, "git"), **options)


def problem(kind, name="git", **more):
    return PackageError("it cannot be used", problems=(PackageProblem(name, kind, **more),))


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "status", "code"),
        [
            (problem(ProblemKind.UNFREE), 403, "DENIED"),
            (problem(ProblemKind.INSECURE), 403, "DENIED"),
            (problem(ProblemKind.BROKEN), 403, "DENIED"),
            (problem(ProblemKind.NOT_A_PACKAGE), 404, "MANIFEST_UNKNOWN"),
            (problem(ProblemKind.FAILED), 422, "MANIFEST_INVALID"),
            (NixBuildError("it fails", derivation="/nix/store/x.drv", log_tail=("a", "b")), 422, "MANIFEST_INVALID"),
            (NixTimeout("too slow", seconds=9, log_tail=("still compiling",)), 422, "MANIFEST_INVALID"),
            (EvaluationError("bad set", trace=("line 1",)), 422, "MANIFEST_INVALID"),
            (SourceError("no network to 10.1.2.3"), 503, "UNAVAILABLE"),
            (NixNotFound("no nix in /opt"), 503, "UNAVAILABLE"),
        ],
    )
    def test_each_kind_of_failure_has_its_status(self, backend, failure, status, code):
        """What the reader can do something about is a 4xx with its words; what only the operator can is a 503."""
        builder, _ = gated(backend, failure=failure, open_gate=True)
        with AsgiClient(registry_app(builder)) as client:
            response = client.get("/v2/git/manifests/latest")
        (error,) = response.json()["errors"]
        assert (response.status, error["code"]) == (status, code)
        if status < 500:
            assert failure.message in error["message"]
        else:
            assert failure.message not in response.body.decode()

    @pytest.mark.parametrize("error", [RevisionNotFound, InvalidTag])
    def test_a_tag_that_is_not_there(self, backend, error):
        """Who asks for one reads which there is, and not where the operator keeps the packages."""
        builder, _ = gated(
            backend, failure=error("/srv/packages has no 'mian'", hint="did you mean main?"), open_gate=True
        )
        with AsgiClient(registry_app(builder)) as client:
            response = client.get("/v2/git/manifests/latest")
        (refused,) = response.json()["errors"]
        assert (response.status, refused["code"]) == (404, "MANIFEST_UNKNOWN")
        assert refused["message"] == "there is no such tag (did you mean main?)"
        assert "/srv" not in response.body.decode()

    def test_how_to_allow_a_package_is_not_told_to_strangers(self, backend):
        """The hint of a package that is forbidden is for who sets the registry up; its name and reason are for all."""
        failure = PackageError(
            "git: unfree",
            problems=(PackageProblem("git", ProblemKind.UNFREE),),
            hint="import_args={'config': {'allowUnfree': True}}",
        )
        builder, _ = gated(backend, failure=failure, open_gate=True)
        with AsgiClient(registry_app(builder)) as client:
            body = client.get("/v2/git/manifests/latest").body.decode()
        assert "import_args" not in body
        assert "git" in body

    def test_near_names_are_in_the_message(self, backend):
        """Who mistypes a package reads what was meant, in what docker prints."""
        with AsgiClient(registry_app(memory_builder(backend, "htop"))) as client:
            (error,) = client.get("/v2/htpo/manifests/latest").json()["errors"]
        assert "htpo: not found; did you mean htop?" in error["message"]
        assert error["detail"]["problems"][0]["candidates"] == ["htop"]

    def test_the_end_of_the_log_is_in_the_detail(self, backend):
        """A build that fails tells its last lines, and no secrets."""
        failure = NixBuildError("it fails", log_tail=("fetching https://me:pw@example.org/x", "cc: error"))
        builder, _ = gated(backend, failure=failure, open_gate=True)
        with AsgiClient(registry_app(builder)) as client:
            (error,) = client.get("/v2/git/manifests/latest").json()["errors"]
        assert error["detail"]["kind"] == "build-failed"
        assert error["detail"]["log"] == ["fetching https://***@example.org/x", "cc: error"]

    def test_packages_that_cannot_be_had_are_not_tried_at_once_again(self, backend):
        """Docker asks with HEAD, then with GET: one evaluation answers both; other failures are tried again."""
        builder, realiser = gated(backend, failure=problem(ProblemKind.UNFREE), open_gate=True)
        with AsgiClient(registry_app(builder, tag_ttl=0)) as client:
            assert client.head("/v2/git/manifests/latest").status == 403
            assert client.get("/v2/git/manifests/latest").status == 403
        assert len(realiser.calls) == 1
        with AsgiClient(registry_app(builder, remember_failures=0)) as client:
            client.get("/v2/git/manifests/latest")
            client.get("/v2/git/manifests/latest")
        assert len(realiser.calls) == 3


class TestSeveralPlatforms:
    def app(self, backend, **options):
        builder, realiser = gated(backend, open_gate=True, **options)
        return registry_app(builder, platforms=[AMD64, ARM64]), realiser

    def test_a_tag_is_an_index(self, backend):
        """A name that says no platform gives an index, in which each platform has its manifest."""
        app, realiser = self.app(backend)
        with AsgiClient(app) as client:
            response = client.get("/v2/git/manifests/latest")
            assert response.headers["content-type"] == INDEX
            children = response.json()["manifests"]
            assert [child["platform"]["architecture"] for child in children] == ["amd64", "arm64"]
            for child in children:
                assert client.get(f"/v2/git/manifests/{child['digest']}").headers["content-type"] == MANIFEST
            assert client.get(f"/v2/git/manifests/{response.headers['docker-content-digest']}").body == response.body
        assert str(read_ref(backend, "git", "latest").digest) == response.headers["docker-content-digest"]
        assert len(realiser.calls) == 2

    def test_a_name_with_a_platform_is_one_image(self, backend):
        """`arm64/git` is no index."""
        app, realiser = self.app(backend)
        with AsgiClient(app) as client:
            assert client.get("/v2/arm64/git/manifests/latest").headers["content-type"] == MANIFEST
        assert [platform for _, platform in realiser.calls] == [ARM64]

    def test_clients_without_indexes_get_the_first_platform(self, backend):
        """Who takes manifests only, of either kind, gets one; who takes Docker's lists gets a list."""
        app, _ = self.app(backend)
        with AsgiClient(app) as client:
            index = client.get("/v2/git/manifests/latest").json()
            single = client.get("/v2/git/manifests/latest", ("Accept", MANIFEST))
            assert single.headers["docker-content-digest"] == index["manifests"][0]["digest"]
            assert (
                client.get("/v2/git/manifests/latest", ("Accept", DOCKER_MANIFEST)).headers["content-type"]
                == DOCKER_MANIFEST
            )
            docker = client.get("/v2/git/manifests/latest", ("Accept", DOCKER_LIST))
            assert docker.headers["content-type"] == DOCKER_LIST == docker.json()["mediaType"]
            for child in docker.json()["manifests"]:
                answer = client.get(f"/v2/git/manifests/{child['digest']}")
                assert (answer.headers["content-type"], len(answer.body)) == (DOCKER_MANIFEST, child["size"])

    def test_a_platform_without_the_packages_is_left_out(self, backend):
        """What the package set does not have for a platform is not in the index; with none at all it is an error."""

        def failure(packages, platform):
            if platform == ARM64 or "vim" in packages:
                raise problem(ProblemKind.UNSUPPORTED_PLATFORM)

        app, _ = self.app(backend, failure=failure)
        with AsgiClient(app) as client:
            children = client.get("/v2/git/manifests/latest").json()["manifests"]
            assert [child["platform"]["architecture"] for child in children] == ["amd64"]
            assert client.get("/v2/vim/manifests/latest").status == 404

    def test_any_other_failure_is_one_of_the_whole(self, backend):
        """What a tag gives must not depend on luck: a build that fails for one platform is an error."""

        def failure(packages, platform):
            if platform == ARM64:
                raise NixBuildError("no aarch64-linux here")

        app, _ = self.app(backend, failure=failure)
        with AsgiClient(app) as client:
            assert client.get("/v2/git/manifests/latest").status == 422


class TestBuilds:
    def test_close_cancels_and_joins(self, backend):
        """Nothing runs after close, and nothing is taken any more."""
        builder, realiser = gated(backend)
        builds = Builds(builder, leases=Leases(backend))
        pin = builder.source.pin("latest")
        build = builds.join(ImageSpec.parse("git"), pin)
        assert realiser.started.acquire(timeout=10)
        builds.close()
        assert isinstance(build.error, Cancelled)
        with pytest.raises(QueueFull):
            builds.join(ImageSpec.parse("htop"), pin)
        assert list(backend.list("leases/")) == []
        no_threads_left()

    def test_close_can_wait(self, backend):
        """Builds that end in time are finished."""
        builder, realiser = gated(backend)
        builds = Builds(builder)
        build = builds.join(ImageSpec.parse("git"), builder.source.pin("latest"))
        threading.Timer(0.2, realiser.gate.set).start()
        builds.close(timeout=20)
        assert build.state is BuildState.DONE

    def test_an_observer_sees_every_state(self, backend):
        """It is told of the start, of the events and of the end; what it raises at the end ends nothing."""
        seen = []

        def observer(build, event):
            seen.append((build.state, event))
            if build.over:
                raise ValueError("an observer that fails")

        builder, _ = gated(backend, open_gate=True)
        builds = Builds(builder, observer=observer)
        for name in ("git", "htop"):
            over = threading.Event()
            build = builds.join(ImageSpec.parse(name), builder.source.pin("latest"))
            builds.when_over(build, over.set)
            assert over.wait(10)
            assert build.image is not None
        builds.close(timeout=10)
        states = [state for state, event in seen if event is None]
        assert states.count(BuildState.DONE) == 2
        assert sum(event is not None for _, event in seen) > 4

    def test_cancellation_reaches_a_waiting_build(self, backend):
        """A build that waits for the lease of another registry can be cancelled too."""
        leases = Leases(backend)
        builder, realiser = gated(backend, open_gate=True)
        spec, pin = ImageSpec.parse("git"), builder.source.pin("latest")
        key = builder.cache_key(spec, pin)
        lease = leases.watch(key.value).acquire()
        assert lease is not None
        with lease:
            builds = Builds(builder, leases=leases)
            build = builds.join(spec, pin)
            time.sleep(0.2)
            builds.close()
            assert build.state is BuildState.CANCELLED
        assert realiser.calls == []
        assert isinstance(build.cancellation, Cancellation)

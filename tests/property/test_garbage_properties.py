"""Builds and the removal of garbage, mixed step by step: a name never stands for an image that lacks a blob."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nixery_core.builder import ImageBuilder
from nixery_core.errors import ObjectNotFound
from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import Descriptor, Manifest
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage import pins
from nixery_core.storage.backend import BackendRef, ObjectInfo
from nixery_core.storage.blobs import image_blobs
from nixery_core.storage.keys import REFS, blob_key, check_key, check_prefix
from nixery_core.storage.layout import delete_ref, list_refs, publish_ref, read_ref
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

pytestmark = pytest.mark.property

HOUR = 3600.0
DAY = 24 * HOUR
NAMES = ["one", "two", "three"]


def packages(revision: int) -> dict[str, MemoryPackage]:
    """Packages that share a library, which never changes; they do from revision to revision."""
    library = MemoryPackage(path=StorePath("a" * 32, "library-1"), tree={"lib": {"library": b"library" * 9}})
    tools = {
        name: MemoryPackage(
            path=StorePath("bcd"[number] * 31 + str(revision), name),
            tree={"bin": {name: f"{name} {revision}".encode()}},
            references=(library.path,),
        )
        for number, name in enumerate(NAMES)
    }
    return {"library": library, **tools}


@attrs.frozen
class Source:
    """A source at a revision."""

    revision: int

    def pin(self, tag: str) -> Pin:
        return Pin(kind="memory", url="memory", revision=str(self.revision), fetch={})


@attrs.define
class Store:
    """Objects in memory, with a clock of its own."""

    now: float = attrs.field(factory=time.time)
    objects: dict[str, tuple[bytes, float]] = attrs.field(factory=dict)
    lock: threading.RLock = attrs.field(factory=threading.RLock)

    def broken(self) -> list[str]:
        """Return the names that stand for something that is not whole."""
        with self.lock:
            data = {key: value for key, (value, _) in self.objects.items()}
        lost = []
        for key, value in data.items():
            if key.startswith(REFS):
                image = Descriptor.from_bytes(value)
                manifest = data.get(blob_key(image.digest))
                needed = [] if manifest is None else Manifest.from_bytes(manifest).layers
                config = [] if manifest is None else [Manifest.from_bytes(manifest).config]
                if manifest is None or any(blob_key(blob.digest) not in data for blob in [*config, *needed]):
                    lost.append(key)
        return lost


class View:
    """The storage as one actor sees it; each call is one step, which *gate* lets through."""

    def __init__(self, store: Store, name: str, gate: Callable[[], None]) -> None:
        self._store = store
        self._name = name
        self._gate = gate

    @property
    def ref(self) -> BackendRef:
        return BackendRef(f"simulated://{self._name}")

    def open_blob(self) -> Writer:
        return Writer(self)

    def create(self, key: str, data: bytes, *, content_type: str = "") -> bool:
        with self._step():
            if key in self._store.objects:
                return False
            self._store.objects[check_key(key)] = (data, self._store.now)
            return True

    def replace(self, key: str, data: bytes, *, content_type: str = "") -> None:
        with self._step():
            self._store.objects[check_key(key)] = (data, self._store.now)

    def get(self, key: str) -> bytes:
        with self._step():
            return self._found(key)[0]

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._step():
            data = self._found(key)[0][start:end]
        return iter([data] if data else [])

    def stat(self, key: str) -> ObjectInfo | None:
        with self._step():
            if key not in self._store.objects:
                return None
            data, modified = self._store.objects[key]
            return ObjectInfo(key, len(data), modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._step():
            keys = sorted(key for key in self._store.objects if key.startswith(prefix))
            infos = [
                ObjectInfo(key, len(self._store.objects[key][0]), modified)
                for key in keys
                for modified in [self._store.objects[key][1]]
            ]
        return iter(infos)

    def delete(self, key: str) -> None:
        with self._step():
            self._store.objects.pop(key, None)

    def put(self, digest: Digest, data: bytes) -> None:
        with self._step():
            # an existing blob is success, as in object stores: it does not become younger
            self._store.objects.setdefault(blob_key(digest), (data, self._store.now))

    def _found(self, key: str) -> tuple[bytes, float]:
        if key not in self._store.objects:
            raise ObjectNotFound(key, key=key)
        return self._store.objects[key]

    def _step(self) -> threading.RLock:
        self._gate()
        with self._store.lock:
            self._store.now += 1.0
        return self._store.lock


class Writer:
    def __init__(self, view: View) -> None:
        self._view = view
        self._data = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data += bytes(data)

    def commit(self, digest: Digest) -> None:
        self._view.put(digest, self._data)

    def cancel(self) -> None:
        pass


class Actors:
    """Threads that take turns, one call to the storage each, in an order that is chosen from outside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, list[threading.Event]] = {}
        self._busy: set[str] = set()
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def gate(self, name: str) -> Callable[[], None]:
        def wait() -> None:
            ticket = threading.Event()
            with self._changed:
                self._waiting[name].append(ticket)
                self._busy.discard(name)
                self._changed.notify_all()
            assert ticket.wait(60)

        return wait

    def start(self, name: str, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                self.failures.append(error)
            finally:
                with self._changed:
                    del self._waiting[name]
                    self._busy.discard(name)
                    self._changed.notify_all()

        self._waiting[name] = []
        self._busy.add(name)
        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()

    def run(self, choose: Callable[[list[str]], str], after_each: Callable[[], None]) -> None:
        """Let one after the other take a step, until all are done; *choose* whose turn it is."""
        while True:
            with self._changed:
                assert self._changed.wait_for(lambda: not self._busy, 60)
                ready = sorted(name for name, tickets in self._waiting.items() if tickets)
                if not ready:
                    break
                name = choose(ready)
                ticket = self._waiting[name].pop(0)
                if not self._waiting[name]:
                    self._busy.add(name)
            after_each()
            ticket.set()
        for thread in self._threads:
            thread.join(60)


def in_order(first: str, steps: list[int]) -> Iterator[str]:
    """Give whose turn it is: *steps* of the first, of the other, of the first ..., then all the rest."""
    names = ["collector", "publisher"] if first == "collector" else ["publisher", "collector"]
    for number, count in enumerate(steps):
        yield from [names[number % 2]] * count
    last = names[len(steps) % 2]
    while True:
        yield last


def free() -> None:
    """Let every step through."""


def build(view: View, name: str, revision: int, *, tag: str = "latest", publish: bool = True) -> Descriptor:
    builder = ImageBuilder(Source(revision), view, realiser=MemoryRealiser(packages(revision)), codec="none", workers=1)
    return builder.build(ImageSpec.parse(name, tag=tag), publish=publish).descriptor


@pytest.fixture(scope="module", autouse=True)
def simulated() -> Iterator[dict[str, View]]:
    """Have layers written into the views by their names; publishers that wait take a step instead of sleeping."""
    views: dict[str, View] = {}
    with (
        mock.patch("nixery_core.layer_writer.open_backend", lambda url: views[url]),
        mock.patch.object(pins, "_sleep", mock.Mock()),
        mock.patch.object(pins, "WORKERS", 1),
    ):
        yield views


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 2), st.booleans()), max_size=4),
    builds=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 2), st.booleans()), min_size=1, max_size=2),
    collectors=st.lists(st.tuples(st.sampled_from([0.0, DAY]), st.sampled_from([0.0, DAY])), min_size=1, max_size=2),
    order=st.lists(st.integers(0, 3), max_size=200),
    patience=st.integers(1, 40),
)
def test_every_order_of_steps_is_safe(
    simulated: dict[str, View],
    history: list[tuple[str, int, bool]],
    builds: list[tuple[str, int, bool]],
    collectors: list[tuple[float, float]],
    order: list[int],
    patience: int,
) -> None:
    """Two builders and two collectors on four machines, each call to the storage in any order.

    The storage holds old images, some of them garbage since yesterday, so builders find old layers in
    the cache in the moment in which collectors remove them.  After every single step each name stands
    for a whole image, also with no grace at all.
    """
    store = Store()
    calm = View(store, "calm", free)
    simulated[calm.ref.url] = calm
    for name, revision, named in history:
        build(calm, name, revision)
        if not named:
            delete_ref(calm, name, "latest")
    store.now += 3 * DAY
    collect_garbage(calm, grace=DAY, keep=DAY, workers=1)
    # builds after that find by digest what is garbage for its collector
    store.now += 2 * DAY
    actors = Actors()
    for number, (name, revision, publish) in enumerate(builds):
        view = View(store, f"builder{number}", actors.gate(f"builder{number}"))
        simulated[view.ref.url] = view

        def work(view: View = view, name: str = name, revision: int = revision, publish: bool = publish) -> None:
            # only with no grace at all the blobs of a build can be removed again and again
            try:
                build(view, name, revision, tag="new", publish=publish)
            except ObjectNotFound:
                assert any(grace == 0 for grace, _ in collectors)

        actors.start(f"builder{number}", work)
    for number, (grace, keep) in enumerate(collectors):
        view = View(store, f"collector{number}", actors.gate(f"collector{number}"))

        def collect(view: View = view, grace: float = grace, keep: float = keep) -> None:
            collect_garbage(view, grace=grace, keep=keep, workers=1)

        actors.start(f"collector{number}", collect)

    def choices() -> Iterator[int]:
        # an actor goes on for a while before the next one comes: else nobody gets far
        for choice in order:
            yield from [choice] * patience
        while True:
            yield from range(4)

    broken: list[list[str]] = []

    def look() -> None:
        if lost := store.broken():
            broken.append(lost)

    turns = choices()
    actors.run(lambda ready: ready[next(turns) % len(ready)], look)
    look()
    assert not broken
    assert actors.failures == []


class Race:
    """A publisher gives a name to an image that is garbage, while a collector removes it."""

    def __init__(self, views: dict[str, View]) -> None:
        store = Store()
        calm = View(store, "calm", free)
        views[calm.ref.url] = calm
        self._image = build(calm, "one", 1)
        delete_ref(calm, "one", "latest")
        self._objects = dict(store.objects)
        self._now = store.now + 3 * DAY

    def run(self, first: str, steps: list[int]) -> tuple[dict[str, int], bool]:
        """Return how many steps each took, and whether the image has the name; fails where a name is broken."""
        store = Store(self._now, dict(self._objects))
        actors = Actors()
        actors.start("publisher", lambda: self._publish(View(store, "publisher", actors.gate("publisher"))))
        actors.start("collector", lambda: self._collect(View(store, "collector", actors.gate("collector"))))
        turns = in_order(first, steps)
        taken = {"publisher": 0, "collector": 0}

        def choose(ready: list[str]) -> str:
            turn = next(turns)
            chosen = turn if turn in ready else ready[0]
            taken[chosen] += 1
            return chosen

        def look() -> None:
            assert store.broken() == [], f"{first} {steps}"

        actors.run(choose, look)
        look()
        assert actors.failures == []
        return taken, any(key.startswith(REFS) for key in store.objects)

    def _publish(self, view: View) -> None:
        with contextlib.suppress(ObjectNotFound):
            publish_ref(view, "one", "again", self._image)

    def _collect(self, view: View) -> None:
        collect_garbage(view, grace=0, keep=0, workers=1)


@pytest.mark.parametrize("first", ["collector", "publisher"])
def test_every_place_to_be_interrupted_is_safe(simulated: dict[str, View], first: str) -> None:
    """A publisher and a collector who interrupt each other at any two steps, tried all: no name is ever broken."""
    race = Race(simulated)
    other = {"collector": "publisher", "publisher": "collector"}[first]
    alone, _ = race.run(first, [1000])
    named = set()
    for before in range(alone[first] + 1):
        # who is interrupted after so many steps lets the other one go on for as many as it needs, and for fewer
        taken, has_name = race.run(first, [before, 1000] if first == "collector" else [before])
        named.add(has_name)
        for between in range(1, min(taken[other], alone[other] + 2)):
            named.add(race.run(first, [before, between])[1])
    assert named == {True, False}


class Killed(BaseException):
    """What a killed process does: nothing more, at any step."""


class LifeOfAStorage(RuleBasedStateMachine):
    """Builds, kills, forgotten names, days that pass, checks and collections, one after the other."""

    views: dict[str, View]

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.calm = self.view("calm", free)
        self.names: dict[tuple[str, str], Descriptor] = {}
        # images that were built or found, and when that was
        self.asked: dict[Digest, tuple[Descriptor, float]] = {}

    def view(self, name: str, gate: Callable[[], None]) -> View:
        view = View(self.store, name, gate)
        self.views[view.ref.url] = view
        return view

    @rule(name=st.sampled_from(NAMES), revision=st.integers(1, 3), tag=st.sampled_from(["a", "b"]))
    def build(self, name: str, revision: int, tag: str) -> None:
        self.names[name, tag] = self.asks(name, revision, tag=tag)

    @rule(name=st.sampled_from(NAMES), revision=st.integers(1, 3))
    def build_without_a_name(self, name: str, revision: int) -> None:
        self.asks(name, revision, publish=False)

    def asks(self, name: str, revision: int, **options: Any) -> Descriptor:
        # the cache compares the clock of the machine with that of the storage, by the day
        with mock.patch("nixery_core.manifest_cache.time", SimpleNamespace(time=lambda: self.store.now)):
            image = build(self.calm, name, revision, **options)
        self.asked[image.digest] = image, self.store.now
        return image

    @rule(name=st.sampled_from(NAMES), revision=st.integers(1, 3), steps=st.integers(0, 60))
    def build_and_be_killed(self, name: str, revision: int, steps: int) -> None:
        left = steps

        def gate() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with contextlib.suppress(Killed):
            build(self.view("killed", gate), name, revision, tag="a")
        # it may have got as far as the name, or not
        image = read_ref(self.calm, name, "a")
        if image is not None:
            self.names[name, "a"] = image

    @rule(name=st.sampled_from(NAMES), tag=st.sampled_from(["a", "b"]))
    def forget(self, name: str, tag: str) -> None:
        assert delete_ref(self.calm, name, tag) is (self.names.pop((name, tag), None) is not None)

    @rule(hours=st.sampled_from([1, 12, 30, 200]))
    def time_passes(self, hours: int) -> None:
        self.store.now += hours * HOUR

    @rule(grace=st.sampled_from([0.0, DAY]), keep=st.sampled_from([0.0, 5 * DAY]), dry_run=st.booleans())
    def collect(self, grace: float, keep: float, dry_run: bool) -> None:
        now = self.store.now
        collect_garbage(self.calm, grace=grace, keep=keep, dry_run=dry_run, workers=1)
        # a find does not renew an entry of the last day, so the last use is known by the day
        self.asked = {key: asked for key, asked in self.asked.items() if asked[1] - DAY > now - keep}

    @rule()
    def check(self) -> None:
        report = fsck(self.calm, workers=1)
        assert report.broken == ()
        assert fsck(self.calm, repair=True, workers=1).broken == ()

    @invariant()
    def names_are_whole(self) -> None:
        assert self.store.broken() == []
        assert {(name, tag): image for name, tag, image in list_refs(self.calm)} == self.names

    @invariant()
    def what_is_asked_for_is_whole(self) -> None:
        for image, _ in self.asked.values():
            assert all(blob_key(blob.digest) in self.store.objects for blob in image_blobs(self.calm, image))

    def teardown(self) -> None:
        for name, tag in self.names:
            delete_ref(self.calm, name, tag)
        for _ in range(3):
            self.store.now += 100 * DAY
            fsck(self.calm, repair=True, workers=1)
            collect_garbage(self.calm, workers=1)
        # nothing that was needed once stays for ever
        assert set(self.store.objects) <= {"index.json", "oci-layout"}


def test_the_life_of_a_storage(simulated: dict[str, View]) -> None:
    """Whatever happens, names and what was just asked for are whole; and in the end nothing is left over."""
    LifeOfAStorage.views = simulated
    run_state_machine_as_test(LifeOfAStorage, settings=settings(max_examples=20, stateful_step_count=20, deadline=None))

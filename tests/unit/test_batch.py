"""Many images in one go, and executors that do not do their work."""

import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import threading
import time

import attrs
import pytest

from nixery_core import events
from nixery_core.builder import ImageBuilder
from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled, InvalidConfig, PackageError, SourceError, StorageError, WorkerError
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.keys import blob_key
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser
from nixery_core.testing.memory_store import Executable, MemoryStore

LETTERS = "abcdfghijk"
BASE = StorePath("1" * 32, "base-1")
PACKAGES = {"base": MemoryPackage(path=BASE, tree={"lib": {"base": b"library" * 1000}})} | {
    f"p{letter}": MemoryPackage(
        path=StorePath(letter * 32, f"p{letter}-1"),
        tree={"bin": {f"p{letter}": Executable(letter.encode() * 100)}},
        references=(BASE,),
    )
    for letter in LETTERS
}
SPECS = [ImageSpec(packages=[f"p{a}", f"p{b}"]) for a, b in itertools.combinations(LETTERS[:5], 2)]


@attrs.define
class Source:
    """A source that counts how often it is asked."""

    asked: int = 0

    def pin(self, tag):
        self.asked += 1
        if tag == "gone":
            raise SourceError("the source is gone")
        return Pin(kind="memory", url="https://example.org/set", revision=f"{tag}-{self.asked}", fetch={})


class Recorder(list):
    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        """The events of a kind, of all images."""
        return [event.event for event in self if isinstance(event.event, kind)]


@pytest.fixture
def backend(tmp_path):
    yield open_backend(tmp_path / "images")
    assert [item.key for item in open_backend(tmp_path / "images").list("staging/")] == []
    names = ("nixery-core", "nixery-batch")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(names)] == []


def builder(backend, *, realiser=None, source=None, **options):
    realiser = MemoryRealiser(PACKAGES) if realiser is None else realiser
    return ImageBuilder(source or Source(), backend, realiser=realiser, workers=2, **options)


class SlowStore(MemoryStore):
    """Takes its time, so that images meet at their layers."""

    def entries(self, path):
        time.sleep(0.02)
        return super().entries(path)


@attrs.frozen
class WithStore:
    """A realiser whose content comes from another store."""

    store: type
    inner: MemoryRealiser = attrs.field(factory=lambda: MemoryRealiser(PACKAGES))
    id: str = "memory 1"

    def evaluate(self, *arguments, **options):
        return self.inner.evaluate(*arguments, **options)

    def realise(self, packages, **options):
        return _Held(self.inner.realise(packages, **options), self.store)


@attrs.frozen
class _Held:
    inner: object
    store: type

    def __enter__(self):
        found = self.inner.__enter__()
        return attrs.evolve(found, reader=self.store(found.reader.trees))

    def __exit__(self, *what):
        return self.inner.__exit__(*what)


class TestBuildMany:
    def test_every_layer_is_written_once(self, backend):
        """Layers that many images need at the same time are written by one of them."""
        seen = Recorder()
        many = builder(backend, realiser=WithStore(SlowStore))
        results = list(many.build_many(SPECS, at_once=5, on_event=seen))
        assert sorted(result.index for result in results) == list(range(len(SPECS)))
        assert all(result.error is None for result in results)
        started = [event.layer_key for event in seen.of(events.LayerStarted)]
        assert len(started) == len(set(started))
        assert len(started) == 1 + 5 + len(SPECS)  # the base, the packages, the customisation layers

    def test_images_are_those_of_single_builds(self, backend, tmp_path):
        """A batch makes the very images that are made one by one."""
        together = {result.index: result.image for result in builder(backend).build_many(SPECS)}
        alone = builder(open_backend(tmp_path / "alone"), source=Pinned())
        again = {r.index: r.image for r in builder(backend, source=Pinned()).build_many(SPECS)}
        for index, spec in enumerate(SPECS):
            assert alone.build(spec).manifest == again[index].manifest
            assert [layer.diff_id for layer in together[index].layers] == [
                layer.diff_id for layer in again[index].layers
            ]

    def test_one_that_fails_harms_no_other(self, backend):
        """A result has an image or an error; the batch goes on."""
        specs = [SPECS[0], ImageSpec(packages=["nothing"]), ImageSpec(packages=["pa"], tag="gone"), SPECS[1]]
        results = {result.index: result for result in builder(backend).build_many(specs)}
        assert [results[n].image is None for n in range(4)] == [False, True, True, False]
        assert isinstance(results[1].error, PackageError)
        assert isinstance(results[2].error, SourceError)

    def test_a_layer_that_fails_fails_all_that_need_it(self, backend):
        """An image fails with the error of the layer that it waited for, whoever began it."""
        broken = {name: package for name, package in PACKAGES.items() if name != "pa"}
        bad = {"lib": {"x": b"x"}, "..": b"not a name"}
        broken["pa"] = attrs.evolve(PACKAGES["pa"], tree=bad)
        specs = [ImageSpec(packages=names) for names in (["pa", "pb"], ["pa", "pc"], ["pb", "pc"])]
        results = {r.index: r for r in builder(backend, realiser=MemoryRealiser(broken)).build_many(specs, at_once=3)}
        assert [results[n].error is None for n in range(3)] == [False, False, True]

    def test_a_tag_is_resolved_once(self, backend):
        """All images of one tag are of one revision, also while the source moves."""
        source = Source()
        results = list(builder(backend, source=source).build_many(SPECS))
        assert source.asked == 1
        assert len({result.image.revision for result in results}) == 1

    def test_specs_are_read_as_images_are_begun(self, backend):
        """No more specifications are taken than are in work, and none before the first result is asked for."""
        taken = []

        def specs():
            for spec in SPECS:
                taken.append(spec)
                yield spec

        results = builder(backend).build_many(specs(), at_once=2)
        assert taken == []
        for number, _ in enumerate(results, 1):
            assert len(taken) <= number + 2

    def test_events_say_of_which_image_they_are(self, backend):
        """Every event of a batch names the image and its place."""
        seen = Recorder()
        list(builder(backend).build_many(SPECS[:2], on_event=seen))
        assert {event.index for event in seen} == {0, 1}
        assert {event.image for event in seen} == {"pa/pb:latest", "pa/pc:latest"}
        assert all(pickle.loads(pickle.dumps(event)) == event for event in seen)
        assert len(seen.of(events.ImageStored)) == 2

    def test_whoever_stops_asking_stops_the_batch(self, backend):
        """A batch that is not read to its end leaves no thread and nothing half-written."""
        results = builder(backend, realiser=WithStore(SlowStore)).build_many(SPECS, at_once=3)
        next(results)
        results.close()
        assert list(results) == []

    def test_cancelling_ends_the_batch(self, backend):
        """A cancelled batch raises Cancelled, and gives no results of images that were stopped."""
        token = Cancellation()
        results = builder(backend, realiser=WithStore(SlowStore)).build_many(SPECS, cancellation=token)
        next(results)
        token.cancel("enough")
        with pytest.raises(Cancelled, match="enough"):
            list(results)

    def test_blobs_that_are_removed_are_written_again(self, backend):
        """What was written for an image before is not taken for stored when the storage has lost it."""
        results = builder(backend).build_many(SPECS[:2], at_once=1)
        first = next(results).image
        for layer in first.layers:
            backend.delete(blob_key(layer.descriptor.digest))
        (second,) = results
        assert any(layer in first.layers for layer in second.image.layers)
        assert all(backend.stat(blob_key(layer.descriptor.digest)) for layer in second.image.layers)

    def test_what_goes_wrong_with_the_specs_is_raised(self, backend):
        """An iterator of specifications that fails ends the batch with its own error."""

        def specs():
            yield SPECS[0]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(builder(backend).build_many(specs(), at_once=2))

    def test_bad_arguments_are_refused_at_once(self, backend):
        """Before anything is iterated."""
        with pytest.raises(InvalidConfig):
            builder(backend).build_many(SPECS, at_once=0)


@attrs.frozen
class Pinned:
    def pin(self, tag):
        return Pin(kind="memory", url="https://example.org/set", revision="r1", fetch={})


class DyingStore(MemoryStore):
    """Kills the process that reads it."""

    def entries(self, path):
        if multiprocessing.parent_process() is None:
            return super().entries(path)
        os._exit(9)


class ForeignError(Exception):
    """An error that is none of the library, and does not even pickle well."""

    def __init__(self, one, two):
        super().__init__(one)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


class TestExecutors:
    def test_a_batch_in_other_processes(self, backend, tmp_path, processes):
        """Layers of a batch are written by processes that share nothing but the storage, each once."""
        seen = Recorder()
        many = builder(backend, source=Pinned(), executor=processes)
        results = {result.index: result for result in many.build_many(SPECS[:4], on_event=seen)}
        alone = builder(open_backend(tmp_path / "alone"), source=Pinned())
        for index, spec in enumerate(SPECS[:4]):
            assert results[index].image.manifest == alone.build(spec).manifest
        keys = [event.layer_key for event in seen.of(events.LayerStarted)]
        assert len(keys) == len(set(keys))

    def test_a_worker_that_dies_is_an_error_of_the_library(self, backend):
        """A process that was killed is told as such, with what to look at."""
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            with pytest.raises(WorkerError, match="BrokenProcessPool") as caught:
                builder(backend, realiser=WithStore(DyingStore), executor=pool).build(SPECS[0])
            assert "logs of its workers" in caught.value.hint
            # and the pool that lost it takes no more work
            with pytest.raises(WorkerError):
                builder(backend, realiser=WithStore(DyingStore), executor=pool).build(SPECS[0])

    def test_an_executor_that_was_shut_down(self, backend):
        """An executor that takes no work is told as such."""
        pool = concurrent.futures.ThreadPoolExecutor(1)
        pool.shutdown()
        with pytest.raises(WorkerError, match="shutdown"):
            builder(backend, executor=pool).build(SPECS[0])

    def test_workers_that_write_elsewhere_are_found_out(self, processes):
        """A storage that each process has for itself is no storage for an image."""
        with pytest.raises(StorageError, match="not in this storage") as caught:
            builder(open_backend("memory://elsewhere"), executor=processes).build(SPECS[0])
        assert "same storage" in caught.value.hint

    def test_errors_in_workers_are_those_of_the_library(self, backend, processes):
        """What a worker raises comes back as it was raised."""
        broken = PACKAGES | {"pa": attrs.evolve(PACKAGES["pa"], tree={"..": b"not a name"})}
        with pytest.raises(Exception, match=r"\.\.") as here:
            builder(backend, realiser=MemoryRealiser(broken)).build(SPECS[0])
        with pytest.raises(type(here.value), match=r"\.\."):
            builder(backend, realiser=MemoryRealiser(broken), executor=processes).build(SPECS[0])

    @pytest.mark.parametrize("error", [ForeignError("odd", 2), MemoryError("no memory"), RuntimeError()])
    def test_foreign_errors_do_not_leak(self, backend, error):
        """Whatever an executor raises, its caller sees one tree of errors, with the cause."""

        class Failing(concurrent.futures.Executor):
            def submit(self, call, *arguments):
                future = concurrent.futures.Future()
                future.set_exception(error)
                return future

        with pytest.raises(WorkerError, match=type(error).__name__) as caught:
            builder(backend, executor=Failing()).build(SPECS[0])
        assert caught.value.__cause__ is error

    def test_jobs_that_somebody_else_cancels(self, backend):
        """An executor that drops its jobs is an error, not a hang."""

        class Dropping(concurrent.futures.Executor):
            def submit(self, call, *arguments):
                future = concurrent.futures.Future()
                future.cancel()
                future.set_running_or_notify_cancel()
                return future

        with pytest.raises(WorkerError, match="CancelledError"):
            builder(backend, executor=Dropping()).build(SPECS[0])

    def test_jobs_that_never_end_can_be_cancelled(self, backend):
        """A cancelled build does not wait for jobs that never began."""

        class Silent(concurrent.futures.Executor):
            def submit(self, call, *arguments):
                return concurrent.futures.Future()

        token = Cancellation()
        threading.Timer(0.2, token.cancel).start()
        with pytest.raises(Cancelled):
            builder(backend, executor=Silent()).build(SPECS[0], cancellation=token)

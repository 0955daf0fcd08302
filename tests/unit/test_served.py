"""How often images are served is counted by many at once, and nothing is lost or counted twice."""

import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InvalidConfig, InvalidDocument, StorageError
from nixery_core.keeping.fsck import fsck
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.served import ServedCounter, ServedPart
from nixery_core.sources import Pin
from nixery_core.storage.keys import DAYS, SERVED, image_packages_key, served_day_key, served_part_key
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

LIBC = PathInfo(StorePath("a" * 32, "glibc-2.36"), 96, [])
BASH = PathInfo(StorePath("b" * 32, "bash-5.2"), 96, [LIBC.path])
GIT = PathInfo(StorePath("c" * 32, "git-2.39"), 96, [LIBC.path, BASH.path])
GIT_DOC = PathInfo(StorePath("d" * 32, "git-2.39-doc"), 96, [])
SHELL, TOOLS, UNKNOWN = (Digest.of(name) for name in (b"shell", b"tools", b"unknown"))


class Clock:
    """A day that the test sets."""

    def __init__(self) -> None:
        self.day = date(2026, 11, 24)

    def __call__(self) -> date:
        return self.day

    def advance(self, days: int) -> None:
        self.day += timedelta(days)


class Failing:
    """A storage whose creation fails, before or after the object is there."""

    def __init__(self, backend):
        self._backend = backend
        self.fail = ""

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def create(self, key, data, **options):
        if self.fail == "before":
            raise StorageError("out of reach", key=key)
        created = self._backend.create(key, data, **options)
        if self.fail == "after":
            raise StorageError("no answer came", key=key)
        return created


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backend():
    return open_backend(f"memory://{uuid.uuid4()}")


@pytest.fixture
def counter(backend, clock):
    """A counter that knows two images."""
    counter = ServedCounter(backend, today=clock)
    counter.describe(SHELL, Closure([LIBC, BASH], [BASH.path]))
    counter.describe(TOOLS, Closure([LIBC, BASH, GIT, GIT_DOC], [GIT.path]))
    return counter


def keys(backend, prefix):
    return [info.key for info in backend.list(prefix)]


class TestCounting:
    def test_packages_of_served_images(self, counter):
        """Each image that was served counts once for each package in it, whatever its outputs and versions."""
        counter.record(SHELL, 3)
        counter.record(TOOLS)
        counter.flush()
        found = counter.popularity()
        assert found.popularity == Popularity({"bash": 4, "git": 1, "glibc": 4})
        assert (found.served, found.unknown) == (4, 0)

    def test_an_image_that_nobody_described(self, counter):
        """What is in an image may be unknown; that it was served is not lost, and counts when it is known."""
        counter.record(UNKNOWN, 2)
        counter.flush()
        assert (counter.popularity().served, counter.popularity().unknown) == (2, 2)
        counter.describe(UNKNOWN, Closure([LIBC], [LIBC.path]))
        assert counter.popularity().popularity == Popularity({"glibc": 2})

    def test_nothing_counted(self, backend, counter):
        """Without images there is no data, and a flush writes nothing."""
        counter.flush()
        assert counter.popularity().popularity == Popularity()
        assert keys(backend, SERVED) == []

    def test_an_image_is_described_once(self, backend, counter):
        """The same image again, from any replica, writes nothing new."""
        before = backend.get(image_packages_key(SHELL))
        ServedCounter(backend).describe(SHELL, Closure([GIT_DOC], []))
        assert backend.get(image_packages_key(SHELL)) == before

    def test_counters_add_up(self, backend, counter, clock):
        """Many counters, each with many threads, lose none of their counts."""
        counters = [counter, *(ServedCounter(backend, today=clock) for _ in range(3))]

        def count(one: ServedCounter) -> None:
            for number in range(50):
                one.record(SHELL)
                if number % 10 == 0:
                    one.flush()
            one.flush()

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(count, counters * 3))
        assert counter.popularity().popularity.counts["bash"] == 4 * 3 * 50

    def test_bad_counts_are_refused(self, counter):
        """A count of nothing, a half-life of nothing or a memory of a day is a mistake of the caller."""
        for call in (
            lambda: counter.record(SHELL, 0),
            lambda: counter.popularity(half_life=0),
            lambda: counter.popularity(half_life=float("nan")),
            lambda: counter.compact(forget_after=1),
        ):
            with pytest.raises(InvalidConfig):
                call()

    def test_a_damaged_object_is_named(self, backend, counter):
        """What cannot be read is an error, not a smaller number."""
        backend.create(served_part_key("2026-11-24", "x"), b"{}")
        with pytest.raises(InvalidDocument, match="ServedPart"):
            counter.popularity()


class TestFailures:
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_flush_that_failed_is_repeated(self, backend, counter, clock, moment):
        """Whether or not the object was there when the error came, its counts are in the sum once."""
        failing = Failing(backend)
        other = ServedCounter(failing, today=clock)
        other.record(SHELL)
        failing.fail = moment
        with pytest.raises(StorageError):
            other.flush()
        other.record(SHELL)
        with pytest.raises(StorageError):
            other.flush()
        assert other.failure is not None
        failing.fail = ""
        other.flush()
        assert other.failure is None
        assert counter.popularity().served == 2
        other.flush()
        assert counter.popularity().served == 2

    def test_flushing_goes_on_after_errors(self, backend, clock):
        """The thread outlives a storage that fails for a while, ends with the block, and the end writes the rest."""
        failing = Failing(backend)
        counter = ServedCounter(failing, today=clock)
        failing.fail = "before"
        with counter.flushing(every=0.01):
            counter.record(SHELL)
            wait_until(lambda: counter.failure is not None)
            failing.fail = ""
            wait_until(lambda: counter.popularity().served == 1)
            counter.record(SHELL)
        assert counter.popularity().served == 2
        assert "nixery-core-served" not in {thread.name for thread in threading.enumerate()}

    def test_the_thread_compacts(self, backend, counter, clock):
        """Days that are over are merged by whoever counts, without being asked."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(3)
        with ServedCounter(backend, today=clock).flushing(every=0.01):
            wait_until(lambda: keys(backend, DAYS))
        assert counter.popularity().served == 1

    def test_start_and_stop(self, backend, clock):
        """A counter has one thread; failures are told while it runs; it can be started again."""
        failing, told = Failing(backend), []
        counter = ServedCounter(failing, today=clock)
        failing.fail = "before"
        counter.record(SHELL)
        for interval in (0, -1):
            with pytest.raises(InvalidConfig):
                counter.start(interval)
        counter.start(0.01, on_failure=told.append)
        with pytest.raises(InvalidConfig, match="has a thread"):
            counter.start()
        wait_until(lambda: told)
        failing.fail = ""
        counter.stop()
        counter.start()
        counter.stop()
        assert counter.popularity().served == 1
        assert isinstance(told[0], StorageError)

    def test_the_end_tells_of_a_failure(self, backend, clock):
        """What could not be written when the block ends is an error."""
        failing = Failing(backend)
        failing.fail = "before"
        with pytest.raises(StorageError), ServedCounter(failing, today=clock).flushing() as counter:
            counter.record(SHELL)


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


class TestDecay:
    def test_a_half_life(self, counter, clock):
        """What was served a half-life ago counts half; without one, age does not matter."""
        counter.record(SHELL, 8)
        counter.flush()
        clock.advance(10)
        counter.record(TOOLS, 3)
        counter.flush()
        assert counter.popularity(half_life=10).popularity == Popularity({"bash": 7, "git": 3, "glibc": 7})
        assert counter.popularity(half_life=5).served == 5
        assert counter.popularity().served == 11

    def test_what_is_forgotten(self, counter, clock):
        """Packages whose weight is next to nothing are left out."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(100)
        assert counter.popularity(half_life=1).popularity == Popularity()

    def test_a_clock_that_is_behind(self, counter, clock):
        """A day that is not there yet counts as today."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(-2)
        assert counter.popularity(half_life=1).served == 1


class TestCompaction:
    def test_days_that_are_over_become_one_object(self, backend, counter, clock):
        """The sum stays as it is; today and yesterday are left alone."""
        for _ in range(5):
            for _ in range(3):
                counter.record(SHELL)
                counter.flush()
            clock.advance(1)
        before = counter.popularity(half_life=3)
        counter.compact()
        assert counter.popularity(half_life=3) == before
        assert keys(backend, DAYS) == [served_day_key(f"2026-11-{day}") for day in (24, 25, 26, 27)]
        assert {key.split("/")[2] for key in keys(backend, SERVED)} == {"2026-11-28"}
        assert counter.popularity().served == 15

    def test_a_part_that_comes_late_counts(self, backend, counter, clock):
        """A process that slept while its day was merged adds to it, before and after another compaction."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(3)
        counter.compact()
        late = served_part_key("2026-11-24", "late-000000")
        backend.create(late, ServedPart.of({SHELL: 5}).to_bytes())
        assert counter.popularity().served == 6
        counter.compact()
        assert counter.popularity().served == 6
        assert keys(backend, SERVED) == [late]

    def test_a_part_that_is_written_again_after_the_merge(self, backend, counter, clock):
        """A flush whose answer was lost, and that is repeated when the part is merged and gone, counts once."""
        failing = Failing(backend)
        other = ServedCounter(failing, today=clock)
        other.record(SHELL)
        failing.fail = "after"
        with pytest.raises(StorageError):
            other.flush()
        clock.advance(3)
        counter.compact()
        failing.fail = ""
        other.flush()
        assert counter.popularity().served == 1

    @pytest.mark.parametrize("calls", range(11))
    def test_interrupted_at_any_call(self, backend, counter, clock, calls):
        """After however many calls the storage is gone, the sum is right before and after the next compaction."""
        for _ in range(3):
            counter.record(SHELL)
            counter.flush()
        clock.advance(3)
        with pytest.raises(StorageError):
            ServedCounter(Interrupted(backend, calls), today=clock).compact()
        assert counter.popularity().served == 3
        counter.compact()
        assert counter.popularity().served == 3
        assert keys(backend, SERVED) == []

    def test_many_at_once_while_others_read(self, backend, counter, clock):
        """Compactions, readers and late writers at the same time: no reader ever sees a wrong sum."""
        for number in range(30):
            counter.record(SHELL)
            counter.flush()
            if number % 10 == 9:
                clock.advance(1)
        clock.advance(2)
        barrier = threading.Barrier(6)

        def read() -> set[int]:
            barrier.wait()
            return {counter.popularity().served for _ in range(15)}

        def compact() -> None:
            barrier.wait()
            ServedCounter(backend, today=clock).compact()

        with ThreadPoolExecutor(6) as pool:
            reads = [pool.submit(read) for _ in range(3)]
            compactions = [pool.submit(compact) for _ in range(3)]
            for future in compactions:
                future.result()
            assert set.union(*(future.result() for future in reads)) == {30}
        assert keys(backend, SERVED) == []
        assert counter.popularity().served == 30

    def test_old_days_can_be_forgotten(self, backend, counter, clock):
        """Merged or not, a day beyond the limit is removed."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(3)
        counter.compact()
        counter.record(SHELL)
        counter.flush()
        clock.advance(30)
        counter.record(TOOLS)
        counter.flush()
        counter.compact(forget_after=30)
        assert counter.popularity().served == 2
        counter.compact(forget_after=29)
        assert counter.popularity().served == 1
        assert keys(backend, DAYS) == []

    def test_strange_names_are_left_alone(self, backend, counter):
        """What is no day is neither read nor removed."""
        backend.create(f"{SERVED}notes/x", b"x")
        backend.create(f"{DAYS}notes", b"x")
        counter.compact(forget_after=2)
        assert counter.popularity().served == 0
        assert keys(backend, SERVED) == [f"{SERVED}notes/x"]

    def test_a_check_of_the_storage_knows_the_objects(self, backend, counter, clock):
        """What counters write is no stranger to fsck, and fsck --repair leaves it alone."""
        counter.record(SHELL)
        counter.flush()
        clock.advance(3)
        counter.compact()
        counter.record(SHELL)
        counter.flush()
        assert fsck(backend, repair=True, grace=0).problems == ()
        assert counter.popularity().served == 2


class Interrupted:
    """A storage that is gone after some calls."""

    def __init__(self, backend, calls):
        self._backend = backend
        self._left = calls
        self._lock = threading.Lock()

    def __getattr__(self, name):
        def call(*arguments, **options):
            with self._lock:
                self._left -= 1
                if self._left < 0:
                    raise StorageError("the power is gone")
            return getattr(self._backend, name)(*arguments, **options)

        return call


class TestBuilder:
    def test_the_builder_tells_of_images(self, backend, clock):
        """An image that is built is described before it can be pulled; one from the cache is not built again."""

        class Source:
            def pin(self, tag):
                return Pin(kind="memory", url="memory", revision="r1", fetch={})

        libc = StorePath("a" * 32, "glibc-2.36")
        packages = {
            "glibc": MemoryPackage(path=libc, tree={"lib": {"libc.so": b"x"}}),
            "hello": MemoryPackage(path=StorePath("b" * 32, "hello-2.12"), tree={"x": b"hi"}, references=(libc,)),
        }
        counter = ServedCounter(backend, today=clock)
        told = Counter()

        def on_image(image, closure):
            told[image] += 1
            counter.describe(image, closure)

        builder = ImageBuilder(Source(), backend, realiser=MemoryRealiser(packages), on_image=on_image)
        for _ in range(2):
            image = builder.build(ImageSpec.parse("hello"))
            counter.record(image.manifest.config.digest)
        counter.flush()
        assert told == {image.manifest.config.digest: 1}
        assert counter.popularity().popularity == Popularity({"glibc": 2, "hello": 2})

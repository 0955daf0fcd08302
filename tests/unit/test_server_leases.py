"""Leases: create-only generations, judged by what is seen, not by clocks."""

import threading
import time

import pytest

from nixery_core.errors import InvalidConfig, InvalidKey, StorageError
from nixery_core.server.leases import Leases, generations
from nixery_core.storage.keys import lease_key, parse_lease_key
from nixery_core.storage.plugins import open_backend

KEY = "a" * 64


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def backend(tmp_path):
    return open_backend(f"memory://{tmp_path}")


@pytest.fixture
def clock():
    return Clock()


class TestLeases:
    def test_one_holder_at_a_time(self, backend):
        """While a lease is held nobody else gets it; given back, it is free at once and leaves no object."""
        leases = Leases(backend)
        with leases.watch(KEY).acquire():
            assert leases.watch(KEY).acquire() is None
            other = leases.watch("b" * 64).acquire()
            assert other is not None
            other.release()
        assert list(backend.list("leases/")) == []
        lease = leases.watch(KEY).acquire()
        assert lease is not None

    def test_of_many_threads_one_wins(self, backend):
        """All look at once; the storage decides."""
        barrier, won = threading.Barrier(16), []

        def look():
            watch = Leases(backend).watch(KEY)
            barrier.wait()
            if watch.acquire() is not None:
                won.append(1)

        threads = [threading.Thread(target=look) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1

    def test_a_silent_holder_is_followed_after_the_ttl(self, backend, clock):
        """Nothing is taken before the looker itself has seen a whole ttl of silence; then one looker takes over."""
        dead = Leases(backend, ttl=10).watch(KEY).acquire()
        watches = [Leases(backend, ttl=10, clock=clock).watch(KEY) for _ in range(3)]
        # however old the object is: a looker that has just come has seen no silence yet
        clock.now = 1_000_000.0
        assert [watch.acquire() for watch in watches] == [None] * 3
        clock.now += 9.9
        assert [watch.acquire() for watch in watches] == [None] * 3
        clock.now += 0.1
        taken = [watch.acquire() for watch in watches]
        assert sum(lease is not None for lease in taken) == 1
        assert generations(backend, KEY) == [1, 2]
        assert dead.generation == 1

    def test_a_beat_keeps_a_lease(self, backend, clock):
        """A holder that speaks keeps the lease for any time."""
        lease = Leases(backend, ttl=10).watch(KEY).acquire()
        watch = Leases(backend, ttl=10, clock=clock).watch(KEY)
        for _ in range(20):
            assert watch.acquire() is None
            assert lease.beat()
            clock.now += 9.0

    def test_the_overtaken_fall_silent(self, backend, clock):
        """A holder that wakes up after all sees that it was followed, and gives back nothing of another."""
        asleep = Leases(backend, ttl=10).watch(KEY).acquire()
        watch = Leases(backend, ttl=10, clock=clock).watch(KEY)
        watch.acquire()
        clock.now += 11
        follower = watch.acquire()
        assert follower is not None
        assert not asleep.beat()
        asleep.release()
        assert generations(backend, KEY) == [1, 2]
        follower.release()
        assert generations(backend, KEY) == []
        # the count begins anew, and the first generation is not the old one
        again = Leases(backend).watch(KEY).acquire()
        assert again.generation == asleep.generation == 1
        assert not asleep.beat()
        asleep.release()
        assert again.beat()

    def test_held_leases_beat_by_themselves(self, backend):
        """Within `with` the object changes all the time, and no thread is left behind."""
        with Leases(backend, ttl=0.1).watch(KEY).acquire() as lease:
            seen = set()
            deadline = time.monotonic() + 5
            while len(seen) < 3:
                seen.add(backend.get(lease_key(KEY, lease.generation)))
                assert time.monotonic() < deadline
        assert not [thread for thread in threading.enumerate() if thread.name == "nixery-core-lease"]

    def test_a_storage_that_fails_ends_no_build(self, backend, caplog):
        """A lease that cannot be renewed or given back is told of in the log, and dies by itself."""

        class Failing:
            def __getattr__(self, name):
                if name in ("replace", "delete") or (name == "list" and failing):
                    raise StorageError("the storage is away")
                return getattr(backend, name)

        failing = False
        with Leases(Failing(), ttl=0.05).watch(KEY).acquire() as lease:
            time.sleep(0.1)
            assert lease.held()
            failing = True
            time.sleep(0.05)
        assert "could not be renewed" in caplog.text
        assert "could not be given back" in caplog.text

    @pytest.mark.parametrize("ttl", [0, -1])
    def test_a_ttl_is_above_zero(self, backend, ttl):
        """Anything else is refused."""
        with pytest.raises(InvalidConfig):
            Leases(backend, ttl=ttl)


class TestKeys:
    @pytest.mark.parametrize(
        "key", ["leases/a", "leases/a/", "leases/a/x", "leases/a/01", "leases/a/0", "lease/a/1", "leases/a/²"]
    )
    def test_other_keys_are_no_leases(self, key):
        """Only what lease_key writes is read."""
        assert parse_lease_key(key) is None

    def test_a_key_cannot_leave_the_store(self):
        """Slashes and dots are refused."""
        with pytest.raises(InvalidKey):
            lease_key("../x", 1)

"""Pins: publishers and collectors of garbage see each other."""

import threading

import attrs
import pytest

from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Descriptor
from nixery_core.storage import pins
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import PINS, blob_key, sweep_key
from nixery_core.storage.pins import Pin, Sweep, pinned, read_pin
from nixery_core.storage.plugins import open_backend


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "images")


@pytest.fixture
def blobs(backend):
    return [put_blob(backend, data, media_type="text/plain") for data in (b"one", b"two", b"three")]


def pin_keys(backend):
    return [info.key for info in backend.list(PINS)]


def sweep(backend, *blobs, turn=1, key=None):
    key = key or sweep_key()
    document = Sweep(turn=turn, deleting=tuple(blob.digest for blob in blobs))
    backend.replace(key, document.to_bytes(), content_type="application/json")
    return key


class TestPinned:
    def test_the_pin_is_there_in_the_body_only(self, backend, blobs):
        """A pin tells of every blob while its body runs, and leaves nothing behind."""
        with pinned(backend, blobs):
            (key,) = pin_keys(backend)
            assert read_pin(backend, key) == Pin(blobs=tuple(blob.digest for blob in blobs))
        assert pin_keys(backend) == []
        assert read_pin(backend, key) is None

    def test_a_missing_blob_is_named(self, backend, blobs):
        """A blob that is not there, or has another size, is an error before the body, and no pin stays."""
        backend.delete(blob_key(blobs[1].digest))
        with pytest.raises(ObjectNotFound) as raised, pinned(backend, blobs):
            pytest.fail("the body must not run")
        assert raised.value.key == blob_key(blobs[1].digest)
        assert raised.value.hint
        with pytest.raises(ObjectNotFound), pinned(backend, [attrs.evolve(blobs[0], size=99)]):
            pytest.fail("the body must not run")
        assert pin_keys(backend) == []

    def test_a_failure_in_the_body_leaves_no_pin(self, backend, blobs):
        """The pin goes with its body, however that ends."""
        with pytest.raises(KeyboardInterrupt), pinned(backend, blobs):
            raise KeyboardInterrupt
        assert pin_keys(backend) == []

    def test_it_stays_while_garbage_is_collected(self, backend, blobs):
        """A collector that looked at the names already learns of the new one from the pin, so it stays for it."""
        key = sweep(backend)
        with pinned(backend, blobs):
            pass
        (pin,) = pin_keys(backend)
        assert read_pin(backend, pin) == Pin(blobs=tuple(blob.digest for blob in blobs), done=True)
        backend.delete(key)
        with pinned(backend, blobs):
            pass
        assert pin_keys(backend) == [pin]


class TestWaiting:
    def test_it_waits_for_who_removes_its_blobs(self, backend, blobs):
        """While a sweep names one of the blobs the body does not run; afterwards the blobs are looked at."""
        key = sweep(backend, blobs[2])
        pauses = []

        def pause(seconds):
            pauses.append(seconds)
            if len(pauses) == 3:
                backend.delete(blob_key(blobs[2].digest))
                sweep(backend, turn=2, key=key)

        with pytest.raises(ObjectNotFound, match=str(blobs[2].digest)), pinned(backend, blobs, pause=pause):
            pytest.fail("the body must not run")
        assert len(pauses) == 3
        assert pauses == sorted(pauses)

    def test_it_does_not_wait_for_other_sweeps(self, backend, blobs):
        """A sweep of other blobs holds nobody up."""
        sweep(backend, Descriptor.of("text/plain", b"other"))
        with pinned(backend, blobs, pause=lambda seconds: pytest.fail("it waited")):
            pass

    @pytest.mark.parametrize("document", [None, b"no JSON", b'{"format_version": 99, "turn": 1}'])
    def test_the_dead_are_waited_for_no_longer_than_they_may_remove(self, backend, blobs, monkeypatch, document):
        """A sweep that is not written again for two lifetimes, or cannot be read, belongs to nobody alive."""
        now = 0.0
        monkeypatch.setattr(pins, "seconds", lambda: now)
        key = sweep(backend, blobs[0])
        if document is not None:
            backend.replace(key, document)
        waited = 0.0

        def pause(seconds):
            nonlocal now, waited
            now += 10 * seconds
            waited += 10 * seconds

        with pinned(backend, blobs, pause=pause):
            assert waited > 2 * pins.SWEEP_LIFETIME
        assert waited < 2 * pins.SWEEP_LIFETIME + 30

    def test_who_writes_again_is_alive(self, backend, blobs, monkeypatch):
        """A sweep that goes on is waited for, as long as it names the blobs."""
        now = 0.0
        monkeypatch.setattr(pins, "seconds", lambda: now)
        key = sweep(backend, blobs[0])
        turns = iter(range(2, 8))

        def pause(seconds):
            nonlocal now
            now += pins.SWEEP_LIFETIME
            turn = next(turns, None)
            if turn is None:
                backend.delete(key)
            else:
                sweep(backend, blobs[0], turn=turn, key=key)

        with pinned(backend, blobs, pause=pause):
            assert next(turns, None) is None


def test_pins_of_many_threads(backend, blobs):
    """Any number of publishers may hold the same blobs."""
    inside = threading.Barrier(8, timeout=20)

    def publish():
        with pinned(backend, blobs):
            inside.wait()

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside.broken
    assert pin_keys(backend) == []


def test_documents_are_strict():
    """A pin without blobs is no pin: it cannot be told what it holds."""
    pin = Pin(blobs=(Digest.of(b""),))
    assert Pin.from_bytes(pin.to_bytes()) == pin
    assert pin.to_json() == {"format_version": 1, "blobs": [str(Digest.of(b""))]}
    assert Sweep.from_bytes(Sweep(turn=0).to_bytes()) == Sweep(turn=0)

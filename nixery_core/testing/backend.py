"""The promises of a storage backend as tests: what every backend passes, shipped ones and yours.

.. code-block:: python

    import pytest
    from nixery_core.testing.backend import BackendTests

    class TestMyBackend(BackendTests):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path)

pytest has to be installed.  Each test gets a backend over an empty storage of its own.
"""

from __future__ import annotations

import gc
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import pytest

from nixery_core.errors import InvalidKey, ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob, read_blob
from nixery_core.storage.capabilities import SupportsLocalFiles, SupportsPublish, SupportsSignedUrls, SupportsUploads
from nixery_core.storage.keys import BLOBS, STAGING, blob_key, staging_key
from nixery_core.storage.plugins import open_backend

_T = TypeVar("_T")

BAD_KEYS = ["", "/", "/etc/passwd", "a//b", "a/", "../a", "a/../../b", ".", "a/./b", "a\0b", "a\\b", "a\nb"]
"""Keys that every backend refuses."""


class BackendTests:
    """Subclass it and give it a fixture ``backend``."""

    large = 9 << 20
    """Size of the large blob, bytes: more than a backend sends at once.  Subclasses may ask for more."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Return a backend over an empty storage."""
        raise NotImplementedError("define a fixture `backend` that returns your backend over an empty storage")

    @pytest.fixture(autouse=True)
    def _nothing_is_left_in_staging(self, backend: Backend) -> Iterator[None]:
        yield
        left: list[object] = [info.key for info in backend.list(STAGING)]
        if isinstance(backend, SupportsUploads):
            left += backend.list_uploads()
        assert not left, f"left in the storage: {left}"

    # blobs

    def test_committed_blob_is_read_back(self, backend: Backend) -> None:
        """A blob is under the key of its digest after commit, whole."""
        data = b"hello, " * 100
        writer = backend.open_blob()
        writer.write(data[:10])
        writer.write(bytearray(data[10:20]))
        writer.write(memoryview(data)[20:])
        writer.commit(Digest.of(data))
        assert backend.get(blob_key(Digest.of(data))) == data

    def test_what_was_written_may_change_afterwards(self, backend: Backend) -> None:
        """A writer has taken what it was given when write returns."""
        buffer = bytearray(b"before")
        writer = backend.open_blob()
        writer.write(buffer)
        buffer[:] = b"after!"
        writer.commit(Digest.of(b"before"))
        assert backend.get(blob_key(Digest.of(b"before"))) == b"before"

    def test_empty_blob(self, backend: Backend) -> None:
        """A blob without a byte is a blob."""
        writer = backend.open_blob()
        writer.commit(Digest.of(b""))
        assert backend.get(blob_key(Digest.of(b""))) == b""
        assert b"".join(backend.stream(blob_key(Digest.of(b"")))) == b""
        assert self._size(backend, blob_key(Digest.of(b""))) == 0

    def test_large_blob(self, backend: Backend) -> None:
        """A blob larger than any buffer arrives whole."""
        data = _noise(self.large)
        writer = backend.open_blob()
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        writer.commit(Digest.of(data))
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data
        assert self._size(backend, blob_key(Digest.of(data))) == len(data)

    def test_nothing_is_visible_before_commit(self, backend: Backend) -> None:
        """An unfinished blob is under no key of blobs."""
        writer = backend.open_blob()
        writer.write(b"half")
        assert list(backend.list(BLOBS)) == []
        writer.cancel()

    def test_cancelled_blob_leaves_nothing(self, backend: Backend) -> None:
        """A cancelled blob is nowhere, however large."""
        for size in (0, 1, self.large):
            writer = backend.open_blob()
            writer.write(bytes(size))
            writer.cancel()
        assert list(backend.list("")) == []

    def test_cancel_twice_or_after_commit_does_nothing(self, backend: Backend) -> None:
        """Cancel may be called at any time."""
        writer = backend.open_blob()
        writer.write(b"kept")
        writer.commit(Digest.of(b"kept"))
        writer.cancel()
        writer.cancel()
        assert backend.get(blob_key(Digest.of(b"kept"))) == b"kept"

    def test_dropped_writer_publishes_nothing(self, backend: Backend) -> None:
        """A writer that is forgotten leaves nothing behind, however much was written."""
        for size in (1, self.large):
            writer = backend.open_blob()
            writer.write(bytes(size))
            del writer
        gc.collect()
        assert list(backend.list("")) == []

    def test_exception_while_writing_leaves_nothing(self, backend: Backend) -> None:
        """What a caller cancels because of its own failure is nowhere."""

        def interrupted() -> bytes:
            raise KeyboardInterrupt

        def write() -> None:
            writer = backend.open_blob()
            try:
                writer.write(b"half")
                writer.write(interrupted())
            finally:
                writer.cancel()

        with pytest.raises(KeyboardInterrupt):
            write()
        assert list(backend.list("")) == []

    def test_writer_is_closed_after_commit_and_cancel(self, backend: Backend) -> None:
        """Writing or committing again is an error, and changes nothing."""
        committed, cancelled = backend.open_blob(), backend.open_blob()
        committed.write(b"data")
        committed.commit(Digest.of(b"data"))
        cancelled.write(b"other")
        cancelled.cancel()
        for writer in (committed, cancelled):
            with pytest.raises(StorageError):
                writer.write(b"more")
            with pytest.raises(StorageError):
                writer.commit(Digest.of(b"other"))
        assert [info.key for info in backend.list(BLOBS)] == [blob_key(Digest.of(b"data"))]

    def test_existing_blob_is_success(self, backend: Backend) -> None:
        """The same blob may be written any number of times."""
        for _ in range(2):
            put_blob(backend, b"same", media_type="text/plain")
            writer = backend.open_blob()
            writer.write(b"same")
            writer.commit(Digest.of(b"same"))
        assert backend.get(blob_key(Digest.of(b"same"))) == b"same"

    def test_writers_of_one_blob_at_once(self, backend: Backend) -> None:
        """Many writers of one blob all succeed, and it is whole."""
        data = _noise(300_000)

        def write() -> None:
            writer = backend.open_blob()
            for start in range(0, len(data), 100_000):
                writer.write(data[start : start + 100_000])
            writer.commit(Digest.of(data))

        _at_once(8, lambda _: write())
        assert backend.get(blob_key(Digest.of(data))) == data

    def test_writers_of_different_blobs_at_once(self, backend: Backend) -> None:
        """Writers do not disturb each other, nor does one that is cancelled."""

        def write(number: int) -> Digest | None:
            data = _noise(200_000 + number)
            writer = backend.open_blob()
            writer.write(data[:100_000])
            writer.write(data[100_000:])
            if number % 3 == 0:
                writer.cancel()
                return None
            writer.commit(Digest.of(data))
            return Digest.of(data)

        digests = {digest for digest in _at_once(8, write) if digest is not None}
        assert {info.key for info in backend.list(BLOBS)} == {blob_key(digest) for digest in digests}
        for digest in digests:
            read_blob(backend, digest)

    # small objects

    def test_create_only_creates(self, backend: Backend) -> None:
        """The first content stays, and the second caller is told."""
        assert backend.create("cache/layers/k", b"first", content_type="application/json") is True
        assert backend.create("cache/layers/k", b"second") is False
        assert backend.get("cache/layers/k") == b"first"

    def test_create_of_an_empty_object(self, backend: Backend) -> None:
        """An object without a byte exists."""
        assert backend.create("cache/layers/empty", b"") is True
        assert backend.create("cache/layers/empty", b"x") is False
        assert backend.get("cache/layers/empty") == b""

    def test_one_of_many_creates(self, backend: Backend) -> None:
        """Of many callers at once exactly one creates, and its content is what all read."""
        for attempt in range(10):
            key = f"cache/manifests/race{attempt}"

            def create(number: int, key: str = key) -> bytes | None:
                data = b"%d" % number * 1000
                return data if backend.create(key, data) else None

            winners = [data for data in _at_once(8, create) if data is not None]
            assert [backend.get(key)] == winners

    def test_replace_replaces(self, backend: Backend) -> None:
        """The last content stays, shorter or longer."""
        for data in (b"one", b"a much longer content", b""):
            backend.replace("index.json", data, content_type="application/json")
            assert backend.get("index.json") == data
        assert self._size(backend, "index.json") == 0

    def test_readers_see_old_or_new_never_a_mix(self, backend: Backend) -> None:
        """Replacing is atomic for those who read meanwhile."""
        contents = [bytes([65 + number]) * (20_000 + 1000 * number) for number in range(4)]
        backend.replace("index.json", contents[0])
        done = threading.Event()
        torn: list[bytes] = []

        def read() -> None:
            while not done.is_set():
                data = backend.get("index.json")
                if data not in contents:
                    torn.append(data)

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(3)]
            try:
                for number in range(40):
                    backend.replace("index.json", contents[number % 4])
            finally:
                done.set()
            for reader in readers:
                reader.result()
        assert torn == []

    # reading

    def test_ranges(self, backend: Backend) -> None:
        """A stream gives the bytes from start to before end, clipped to the object."""
        data = bytes(range(256)) * 40
        backend.create("cache/layers/k", data)
        size = len(data)
        for start, end in [(0, None), (0, 0), (5, 5), (7, 3), (1, 2), (100, size), (100, size + 9), (size, None)]:
            assert b"".join(backend.stream("cache/layers/k", start, end)) == data[start:end], (start, end)
        assert b"".join(backend.stream("cache/layers/k", size + 5)) == b""

    def test_range_of_a_large_blob(self, backend: Backend) -> None:
        """A range may begin and end anywhere in a blob of many pieces."""
        data = _noise(self.large)
        put_blob(backend, data, media_type="text/plain")
        start, end = 1_000_001, self.large - 77
        assert b"".join(backend.stream(blob_key(Digest.of(data)), start, end)) == data[start:end]

    def test_streams_do_not_share_a_position(self, backend: Backend) -> None:
        """Two readers of one object do not disturb each other."""
        data = _noise(self.large)
        key = blob_key(put_blob(backend, data, media_type="text/plain").digest)
        first, second = backend.stream(key), backend.stream(key)
        begin = next(first)
        assert b"".join(second) == data
        assert begin + b"".join(first) == data

    def test_stream_may_be_left_early(self, backend: Backend) -> None:
        """A reader that stops leaves nothing open."""
        key = blob_key(put_blob(backend, _noise(self.large), media_type="text/plain").digest)
        stream = backend.stream(key)
        next(stream)
        del stream
        backend.delete(key)
        assert backend.stat(key) is None

    def test_what_is_not_there(self, backend: Backend) -> None:
        """A missing object raises where it is read, and is None where it is looked up."""
        backend.create("cache/layers/k", b"x")
        for key in ("cache/layers/none", "cache/layers/k/below", "cache/layers", "nowhere/at/all"):
            assert backend.stat(key) is None
            with pytest.raises(ObjectNotFound) as raised:
                backend.get(key)
            assert raised.value.key == key
            with pytest.raises(ObjectNotFound):
                next(backend.stream(key))

    def test_stat(self, backend: Backend) -> None:
        """A look-up tells the key and the size."""
        backend.create("refs/a/_tags/latest", b"12345")
        info = backend.stat("refs/a/_tags/latest")
        assert info is not None
        assert (info.key, info.size) == ("refs/a/_tags/latest", 5)

    def test_new_objects_are_seen_at_once(self, backend: Backend) -> None:
        """Nothing that was looked up before hides what was written since."""
        assert backend.stat("cache/layers/new") is None
        assert list(backend.list("cache/")) == []
        backend.create("cache/layers/new", b"x")
        assert self._size(backend, "cache/layers/new") == 1
        assert [info.key for info in backend.list("cache/")] == ["cache/layers/new"]
        backend.delete("cache/layers/new")
        assert backend.stat("cache/layers/new") is None
        assert list(backend.list("cache/")) == []

    def test_list_is_sorted_and_exact(self, backend: Backend) -> None:
        """A listing gives each key under its prefix once, in the order of the keys, with sizes."""
        keys = ["refs/a/_tags/v1", "refs/a/b/_tags/v1", "refs/a-b/_tags/v1", "refs/a.b/_tags/v1", "refs/a/_tags/v10"]
        others = ["refsx/a", "index.json", "cache/layers/k"]
        for number, key in enumerate(keys + others):
            backend.create(key, bytes(number))
        assert [(info.key, info.size) for info in backend.list("refs/")] == sorted(zip(keys, range(5), strict=True))
        assert [info.key for info in backend.list("")] == sorted(keys + others)
        assert [info.key for info in backend.list("refs/a/")] == sorted(
            key for key in keys if key.startswith("refs/a/")
        )
        assert list(backend.list("nothing/here/")) == []

    def test_list_of_a_key_is_empty(self, backend: Backend) -> None:
        """A key is not under itself."""
        backend.create("cache/layers/k", b"x")
        assert list(backend.list("cache/layers/k/")) == []

    def test_delete(self, backend: Backend) -> None:
        """Deleting removes one object; what is not there is deleted already."""
        backend.create("cache/layers/a", b"x")
        backend.create("cache/layers/b", b"x")
        backend.delete("cache/layers/a")
        backend.delete("cache/layers/a")
        backend.delete("nowhere/at/all")
        backend.delete("cache/layers/b/below")
        assert [info.key for info in backend.list("")] == ["cache/layers/b"]
        assert backend.create("cache/layers/a", b"y") is True

    # what only some backends can do

    def test_publish(self, backend: Backend) -> None:
        """A staged object becomes a blob, in the place of an equal one, and is no longer staged."""
        if not isinstance(backend, SupportsPublish):
            _skip_without(backend, "SupportsPublish")
        data = _noise(self.large)
        for _ in range(2):
            staged = staging_key()
            backend.replace(staged, data)
            backend.publish(staged, Digest.of(data))
            assert backend.stat(staged) is None
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data

    def test_publish_takes_only_what_is_staged(self, backend: Backend) -> None:
        """A key outside of staging is refused, and a staged object that is not there is not found."""
        if not isinstance(backend, SupportsPublish):
            _skip_without(backend, "SupportsPublish")
        backend.create("cache/layers/k", b"x")
        for key in ("cache/layers/k", "staging/../cache/layers/k", "staging/", ""):
            with pytest.raises(InvalidKey):
                backend.publish(key, Digest.of(b"x"))
        with pytest.raises(ObjectNotFound):
            backend.publish(staging_key(), Digest.of(b"x"))
        assert [info.key for info in backend.list("")] == ["cache/layers/k"]

    def test_local_file(self, backend: Backend) -> None:
        """The file of an object holds its bytes; what is not there has none."""
        if not isinstance(backend, SupportsLocalFiles):
            _skip_without(backend, "SupportsLocalFiles")
        backend.create("cache/layers/k", b"content")
        path = backend.local_file("cache/layers/k")
        if path is not None:
            assert path.read_bytes() == b"content"
        for key in ("cache/layers/none", "cache/layers", "cache/layers/k/below"):
            assert backend.local_file(key) is None

    def test_uploads_are_listed_and_aborted(self, backend: Backend) -> None:
        """What a large blob has sent so far is an upload or in staging; a cancelled one leaves no upload."""
        if not isinstance(backend, SupportsUploads):
            _skip_without(backend, "SupportsUploads")
        writer = backend.open_blob()
        writer.write(_noise(self.large))
        for upload in backend.list_uploads():
            assert upload.key.startswith((BLOBS, STAGING))
            assert upload.id
        writer.cancel()
        assert list(backend.list_uploads()) == []

    def test_keys_of_capabilities_are_checked(self, backend: Backend) -> None:
        """No capability takes a key that leads out of the storage."""
        for key in BAD_KEYS:
            if isinstance(backend, SupportsLocalFiles):
                with pytest.raises(InvalidKey):
                    backend.local_file(key)
            if isinstance(backend, SupportsSignedUrls):
                with pytest.raises(InvalidKey):
                    backend.signed_url(key)

    # keys, errors, references

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys_are_refused(self, backend: Backend, key: str) -> None:
        """No key leads out of the storage, whatever the call."""
        calls: list[Callable[[], object]] = [
            lambda: backend.create(key, b"x"),
            lambda: backend.replace(key, b"x"),
            lambda: backend.get(key),
            lambda: list(backend.stream(key)),
            lambda: backend.stat(key),
            lambda: backend.delete(key),
        ]
        for call in calls:
            with pytest.raises(InvalidKey):
                call()

    @pytest.mark.parametrize("prefix", ["/", "../", "a//", "cache", "a/../"])
    def test_bad_prefixes_are_refused(self, backend: Backend, prefix: str) -> None:
        """A prefix is empty or ends at a component."""
        with pytest.raises(InvalidKey):
            list(backend.list(prefix))

    def test_reference_opens_the_same_storage(self, backend: Backend) -> None:
        """What is left of a backend after pickling finds the same objects."""
        backend.create("cache/layers/k", b"here")
        ref = pickle.loads(pickle.dumps(backend.ref))  # noqa: S301 - our own bytes
        again = open_backend(ref.url, **ref.options)
        assert again.get("cache/layers/k") == b"here"
        assert again.create("cache/layers/k", b"there") is False
        assert again.ref == backend.ref

    def test_backend_shows_no_secret(self, backend: Backend) -> None:
        """Neither the backend nor its reference prints its options."""
        for value in backend.ref.options.values():
            if isinstance(value, str) and value:
                assert value not in repr(backend.ref)
                assert value not in repr(backend)

    def _size(self, backend: Backend, key: str) -> int | None:
        info = backend.stat(key)
        return info.size if info else None


def _skip_without(backend: Backend, capability: str) -> NoReturn:
    pytest.skip(f"{type(backend).__name__} has no {capability}")


def _at_once(count: int, call: Callable[[int], _T]) -> list[_T]:
    barrier = threading.Barrier(count)

    def wait_and_call(number: int) -> _T:
        barrier.wait(timeout=30)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


def _noise(size: int) -> bytes:
    # no two pieces are alike, so pieces in the wrong place are seen
    return random.Random(size).randbytes(size)  # noqa: S311 - test data

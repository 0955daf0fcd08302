"""What every bucket has in common: parts, publishing, conditions, and what happens when a request fails."""

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError, StorageFull
from nixery_core.events import StorageRetried, ignore_events
from nixery_core.model.digest import Digest
from nixery_core.storage import _spool, part_upload, part_writer, spool_writer
from nixery_core.storage.backend import Backend, BackendRef, ObjectInfo
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.keys import BLOBS, blob_key
from nixery_core.storage.object_store import IMMUTABLE, MUTABLE, ObjectHeaders, Piece
from nixery_core.storage.object_store_backend import BLOCK, ObjectStoreBackend
from nixery_core.storage.part_upload import FIRST_PART, MOST_PARTS, part_size
from nixery_core.storage.retrying import Retrying
from nixery_core.testing import BackendTests

LARGE = 2 * FIRST_PART + 5


class Bucket:
    """A bucket in memory: each request may be made to fail, and is written down."""

    parallel_parts = 3

    def __init__(self, *, decides: bool = True, obeys: bool = True) -> None:
        self.decides = decides
        self.obeys = obeys
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, ObjectHeaders] = {}
        self.uploads: dict[str, tuple[str, ObjectHeaders, dict[int, bytes]]] = {}
        self.requests: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.on_event = ignore_events
        self.busy = 0
        self.busiest = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        self._ids = itertools.count()

    @contextlib.contextmanager
    def request(self, name: str) -> Iterator[None]:
        with self._lock:
            self.requests.append(name)
            if name in self.failing:
                raise self.failing[name]
            yield

    def with_events(self, on_event):
        again = Bucket(decides=self.decides, obeys=self.obeys)
        again.objects, again.on_event = self.objects, on_event
        return again

    def put(self, key, data, headers, *, only_new=False):
        with self.request("put"):
            if only_new and self.obeys and key in self.objects:
                return False
            self.objects[key], self.headers[key] = bytes(data), headers
            return True

    def get(self, key):
        with self.request("get"):
            if key not in self.objects:
                raise ObjectNotFound(f"there is no object {key}", key=key)
            return self.objects[key]

    def get_range(self, key, start, end, version=""):
        data = self.get(key)
        found = str(hash(data))
        if version and version != found:
            raise StorageError(f"{key} was replaced", key=key)
        return Piece(data[start:end], len(data), found)

    def stat(self, key):
        with self.request("stat"):
            return ObjectInfo(key, len(self.objects[key])) if key in self.objects else None

    def list(self, prefix):
        with self.request("list"):
            return iter(
                [ObjectInfo(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)]
            )

    def delete(self, key):
        with self.request("delete"):
            self.objects.pop(key, None)

    def copy(self, source, target, size, headers):
        with self.request("copy"):
            assert len(self.objects[source]) == size
            self.objects[target], self.headers[target] = self.objects[source], headers

    def start_upload(self, key, headers):
        with self.request("start"):
            number = str(next(self._ids))
            self.uploads[number] = (key, headers, {})
            return UnfinishedUpload(key=key, id=number)

    def upload_part(self, upload, number, offset, data, *, last):
        with self._lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self.pause)
        try:
            with self.request("part"):
                assert last or len(data) % (256 << 10) == 0
                self.uploads[upload.id][2][number] = bytes(data)
                return str(number)
        finally:
            with self._lock:
                self.busy -= 1

    def complete_upload(self, upload, parts, size):
        with self.request("complete"):
            key, headers, found = self.uploads.pop(upload.id)
            self.objects[key] = b"".join(found[int(part)] for part in parts)
            self.headers[key] = headers

    def abort_upload(self, upload):
        with self.request("abort"):
            self.uploads.pop(upload.id, None)

    def signed_url(self, key, method, expires, content_type):
        return f"https://bucket/{key}?{method}"


class BucketBackend(ObjectStoreBackend):
    """With the uploads of the bucket in sight, so that the suite counts them."""

    def list_uploads(self):
        return iter([UnfinishedUpload(key=key, id=number) for number, (key, _, _) in self._store.uploads.items()])

    def abort_upload(self, upload):
        self._store.abort_upload(upload)


@pytest.fixture
def bucket() -> Bucket:
    """An empty bucket that obeys, and is known to."""
    return Bucket()


@pytest.fixture
def backend(bucket: Bucket) -> BucketBackend:
    """The backend over the bucket."""
    return BucketBackend(BackendRef("bucket://test"), bucket, large_blobs="stage")


def write(backend: Backend, data: bytes) -> str:
    writer = backend.open_blob()
    try:
        for start in range(0, len(data), 3_000_000):
            writer.write(data[start : start + 3_000_000])
        writer.commit(Digest.of(data))
    finally:
        writer.cancel()
    return blob_key(Digest.of(data))


class TestAnyBucket(BackendTests):
    large = LARGE
    other_processes = False

    @pytest.fixture(params=["known", "obeys", "does not", "spools"])
    def backend(self, request) -> Backend:
        """Return a backend over a bucket that decides who creates, may turn out to, or does not."""
        bucket = Bucket(decides=request.param == "known", obeys=request.param != "does not")
        backend = BucketBackend(
            BackendRef("bucket://test"), bucket, large_blobs="spool" if request.param == "spools" else "stage"
        )
        assert backend.creates_atomically() is (request.param != "does not")
        return backend

    def test_reference_opens_the_same_storage(self, backend: Backend) -> None:
        """Only an installed backend is opened by its reference."""
        assert backend.ref == BackendRef("bucket://test")


class TestParts:
    def test_small_blob_is_one_request(self, bucket: Bucket, backend: BucketBackend) -> None:
        """What fits into one part is put under its digest, and nothing else is asked."""
        write(backend, bytes(FIRST_PART))
        assert bucket.requests == ["put"]

    def test_large_blob_is_copied_into_place(self, bucket: Bucket, backend: BucketBackend) -> None:
        """A large blob goes to staging in parts, is copied with its headers, and unstaged."""
        key = write(backend, bytes(LARGE))
        assert bucket.requests == ["start", "part", "part", "part", "complete", "copy", "delete"]
        assert bucket.headers[key].cache_control == IMMUTABLE
        assert {headers.cache_control for name, headers in bucket.headers.items() if name != key} == {MUTABLE}

    def test_parts_are_sent_while_the_blob_is_written(self, bucket: Bucket, backend: BucketBackend) -> None:
        """Parts are on their way at once, but never more than the bucket takes; the last one is never empty."""
        bucket.pause = 0.05
        write(backend, bytes(8 * FIRST_PART))
        assert bucket.busiest == bucket.parallel_parts
        assert bucket.requests.count("part") == 8

    def test_writer_waits_for_a_slow_bucket(self, bucket: Bucket, backend: BucketBackend) -> None:
        """A writer holds no more parts than are on their way."""
        bucket.pause = 0.2
        writer = backend.open_blob()
        begin = time.monotonic()
        writer.write(bytes(5 * FIRST_PART))
        assert time.monotonic() - begin > 0.15
        writer.cancel()

    def test_part_sizes(self) -> None:
        """Ten thousand parts hold a TiB, none is smaller than the one before, all but the last can be aligned."""
        sizes = [part_size(number) for number in range(1, MOST_PARTS + 1)]
        assert sum(sizes) > 1 << 40
        assert sizes == sorted(sizes)
        assert sizes[:1000] == [FIRST_PART] * 1000
        assert all(size % (256 << 10) == 0 for size in sizes)
        assert sizes[-1] < 5 << 30

    def test_parts_grow(self, bucket: Bucket, backend: BucketBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """The parts that are sent have the sizes of the plan, and the blob is whole."""
        for module in (part_upload, part_writer):
            monkeypatch.setattr(module, "FIRST_PART", 1 << 20)
        monkeypatch.setattr(part_upload, "EQUAL_PARTS", 2)
        monkeypatch.setattr(part_upload, "_STEP_PARTS", 1)
        data = os.urandom(5_000_000)
        complete, seen = bucket.complete_upload, []
        monkeypatch.setattr(
            bucket,
            "complete_upload",
            lambda upload, parts, size: (
                seen.extend(len(part) for _, part in sorted(bucket.uploads[upload.id][2].items())),
                complete(upload, parts, size),
            ),
        )
        assert backend.get(write(backend, data)) == data
        assert seen == [1 << 20, 1 << 20, 1 << 20, 5 << 18, 5_000_000 - (3 << 20) - (5 << 18)]

    def test_too_large(self, bucket: Bucket, backend: BucketBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A blob of more parts than a bucket takes is an error, and nothing is left of it."""
        monkeypatch.setattr(part_upload, "MOST_PARTS", 2)
        with pytest.raises(StorageError, match="too large"):
            write(backend, bytes(3 * FIRST_PART))
        assert (bucket.objects, bucket.uploads) == ({}, {})


class TestFailures:
    @pytest.mark.parametrize("request_", ["start", "part", "complete", "copy"])
    @pytest.mark.parametrize("error", [StorageError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
    def test_nothing_is_left(self, bucket: Bucket, backend: BucketBackend, request_: str, error: BaseException) -> None:
        """Whatever request fails, the error is told and nothing stays, neither object nor upload nor thread."""
        bucket.failing[request_] = error
        with pytest.raises(type(error)):
            write(backend, bytes(LARGE))
        bucket.failing.clear()
        assert (bucket.objects, bucket.uploads) == ({}, {})
        assert [thread.name for thread in threading.enumerate() if "nixery-core-part" in thread.name] == []

    def test_first_error_is_told(self, bucket: Bucket, backend: BucketBackend) -> None:
        """Where removing fails too, the first cause is what is raised."""
        bucket.failing |= {"complete": StorageError("first"), "abort": StorageError("second")}
        with pytest.raises(StorageError, match="first"):
            write(backend, bytes(LARGE))

    def test_failed_part_stops_the_writer(self, bucket: Bucket, backend: BucketBackend) -> None:
        """A part that failed is told by a later write, not only by commit."""
        bucket.failing["part"] = StorageError("broken")
        writer = backend.open_blob()

        def write_for_ever() -> None:
            while True:
                writer.write(bytes(FIRST_PART))

        with pytest.raises(StorageError, match="broken"):
            write_for_ever()
        assert bucket.requests.count("part") < 20
        writer.cancel()
        assert bucket.uploads == {}

    def test_parts_that_cannot_be_removed_are_told(self, bucket: Bucket, backend: BucketBackend) -> None:
        """A cancel that leaves parts behind says so, once."""
        writer = backend.open_blob()
        writer.write(bytes(LARGE))
        bucket.failing["abort"] = StorageError("cannot abort")
        with pytest.raises(StorageError, match="cannot abort"):
            writer.cancel()
        writer.cancel()

    def test_writer_dropped_in_an_event_loop(self, bucket: Bucket, backend: BucketBackend) -> None:
        """A writer that is collected where nothing may block is removed by another thread."""

        async def drop() -> None:
            writer = backend.open_blob()
            writer.write(bytes(LARGE))
            assert bucket.uploads
            del writer
            gc.collect()

        asyncio.run(drop())
        deadline = time.monotonic() + 10
        while bucket.uploads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert bucket.uploads == {}

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_child_process_does_not_abort(self, bucket: Bucket, backend: BucketBackend, tmp_path: Path) -> None:
        """What a child process inherits is the parent's to finish."""
        writer = backend.open_blob()
        data = bytes(LARGE)
        writer.write(data)
        child = os.fork()
        if child == 0:
            before = len(bucket.requests)
            del writer
            gc.collect()
            (tmp_path / "asked").write_text(str(bucket.requests[before:]))
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "asked").read_text() == "[]"
        writer.commit(Digest.of(data))
        assert [info.key for info in backend.list(BLOBS)] == [blob_key(Digest.of(data))]


class Disk:
    """The disk of the folder for temporary files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 40
        """Bytes that can be written."""
        self.told: int | None = None
        """What the disk says is free, if that is not true."""
        self.kind = "ext4"
        self._write = os.write
        monkeypatch.setattr(_spool, "write_all", self._write_all)
        monkeypatch.setattr(_spool.shutil, "disk_usage", lambda _: SimpleNamespace(free=self.told or self.free))
        monkeypatch.setattr(_spool, "_in_memory", lambda _: self.kind == "tmpfs")

    def _write_all(self, fd: int, data: memoryview) -> None:
        taken = data[: self.free]
        self._write(fd, taken)
        self.free -= len(taken)
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with room, until a test says otherwise."""
    return Disk(monkeypatch)


class TestSpool:
    @pytest.fixture
    def backend(self, bucket: Bucket) -> BucketBackend:
        """A backend that keeps large blobs on this machine until their digest is known."""
        return BucketBackend(BackendRef("bucket://test"), bucket, large_blobs="spool")

    def test_large_blob_is_sent_once(self, bucket: Bucket, backend: BucketBackend) -> None:
        """Nothing is sent before the digest is known, and nothing is copied."""
        writer = backend.open_blob()
        writer.write(bytes(LARGE))
        assert bucket.requests == []
        writer.commit(Digest.of(bytes(LARGE)))
        assert sorted(bucket.requests) == ["complete", "part", "part", "part", "start"]
        assert bucket.headers[blob_key(Digest.of(bytes(LARGE)))].cache_control == IMMUTABLE

    @pytest.mark.parametrize("request_", ["start", "part", "complete", "put"])
    def test_nothing_is_left(self, bucket: Bucket, backend: BucketBackend, request_: str) -> None:
        """Whatever request fails, the error is told and nothing stays."""
        bucket.failing[request_] = StorageError("broken")
        with pytest.raises(StorageError, match="broken"):
            write(backend, bytes(5 if request_ == "put" else LARGE))
        assert (bucket.objects, bucket.uploads) == ({}, {})

    def test_full_disk(self, backend: BucketBackend, bucket: Bucket, disk: Disk) -> None:
        """Who asked for the file is told that the disk is full, and nothing was sent."""
        disk.free = 20 << 20
        with pytest.raises(StorageFull, match=r"a large blob in .*No space left"):
            write(backend, bytes(LARGE * 2))
        assert bucket.requests == []


class TestAuto:
    STAGED = ("start", "part", "part", "part", "complete", "copy", "delete")
    SENT_ONCE = ("start", "part", "part", "part", "complete")

    @pytest.fixture
    def backend(self, bucket: Bucket) -> BucketBackend:
        """A backend that decides by itself."""
        return BucketBackend(BackendRef("bucket://test"), bucket)

    @staticmethod
    def order(bucket: Bucket) -> list[str]:
        """Return the requests; parts are sent side by side, and may arrive before their upload is noted."""
        return sorted(bucket.requests)

    def test_with_room(self, bucket: Bucket, backend: BucketBackend, disk: Disk) -> None:
        """A large blob is sent once, under its digest; what is written before is not sent."""
        data = os.urandom(LARGE)
        assert backend.get(write(backend, data)) == data
        assert self.order(bucket) == sorted((*self.SENT_ONCE, "get"))

    def test_small_blob(self, bucket: Bucket, backend: BucketBackend, disk: Disk) -> None:
        """What fits into one request needs no disk at all."""
        disk.free = 0
        write(backend, bytes(FIRST_PART))
        assert bucket.requests == ["put"]

    @pytest.mark.parametrize("why", ["nearly full", "in memory", "no folder"])
    def test_no_room(
        self, bucket: Bucket, backend: BucketBackend, disk: Disk, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        """Where nothing may be spooled, a large blob goes through staging while it is written."""
        if why == "nearly full":
            disk.free = _spool.KEPT_FREE - 1
        elif why == "in memory":
            disk.kind = "tmpfs"
        else:
            monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
        data = os.urandom(LARGE)
        assert backend.get(write(backend, data)) == data
        assert self.order(bucket) == sorted((*self.STAGED, "get"))

    @pytest.mark.parametrize("told", [None, 1 << 40], ids=["seen coming", "surprise"])
    def test_disk_that_fills(
        self, bucket: Bucket, backend: BucketBackend, disk: Disk, monkeypatch: pytest.MonkeyPatch, told: int | None
    ) -> None:
        """A blob for which the disk is too small moves to staging, whole, and gives the room back."""
        monkeypatch.setattr(spool_writer, "LOOK_EVERY", 1 << 20)
        monkeypatch.setattr(_spool, "KEPT_FREE", 1 << 20)
        disk.free, disk.told = (12 << 20) + 7, told
        data, closed = os.urandom(LARGE), []
        close = _spool.Spool.close
        monkeypatch.setattr(_spool.Spool, "close", lambda spool: (closed.append(spool), close(spool)))
        assert backend.get(write(backend, data)) == data
        assert self.order(bucket) == sorted((*self.STAGED, "get"))
        assert len(closed) == 1

    @pytest.mark.parametrize("request_", ["start", "part", "complete", "copy"])
    def test_nothing_is_left(self, bucket: Bucket, backend: BucketBackend, disk: Disk, request_: str) -> None:
        """Whatever request fails on the second way, the error is told and nothing stays."""
        disk.free = 12 << 20
        bucket.failing[request_] = StorageError("broken")
        with pytest.raises(StorageError, match="broken"):
            write(backend, bytes(LARGE))
        bucket.failing.clear()
        assert (bucket.objects, bucket.uploads) == ({}, {})

    def test_cancelled(self, bucket: Bucket, backend: BucketBackend, disk: Disk) -> None:
        """A blob that is given up leaves nothing, wherever it was, and takes no more."""
        for free in (12 << 20, 1 << 40):
            disk.free = free
            writer = backend.open_blob()
            writer.write(bytes(LARGE))
            writer.cancel()
            with pytest.raises(StorageError, match="cancelled"):
                writer.write(b"x")
        assert (bucket.objects, bucket.uploads) == ({}, {})

    def test_disk_that_is_broken(
        self, bucket: Bucket, backend: BucketBackend, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error of the disk that is not for want of room is told, and nothing was sent."""

        def fail(fd: int, data: memoryview) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(_spool, "write_all", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            write(backend, bytes(LARGE))
        assert bucket.requests == []


class TestRoom:
    def test_memory_is_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder for temporary files that is memory is told from one on a disk, by the machine's own mounts."""
        monkeypatch.setattr(_spool, "KEPT_FREE", 0)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        kinds = {fields[1]: fields[2] for fields in map(str.split, Path("/proc/self/mounts").read_text().splitlines())}
        in_memory = [folder for folder in ("/dev/shm", "/run", "/tmp") if kinds.get(folder) == "tmpfs"]
        for folder in in_memory:
            monkeypatch.setattr(tempfile, "tempdir", folder)
            assert not _spool.has_room()
        assert in_memory or _spool.has_room()

    def test_full_disk_is_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk is left to others before it is full."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(_spool, "KEPT_FREE", 1 << 60)
        assert not _spool.has_room()


class TestConditions:
    def test_known_bucket_is_asked_once(self, bucket: Bucket, backend: BucketBackend) -> None:
        """Where the condition is obeyed, to create is one request."""
        assert backend.create("cache/layers/k", b"x")
        assert bucket.requests == ["put"]

    def test_unknown_bucket_is_asked_first(self) -> None:
        """Where it is not known, the object is looked for, until the bucket has refused one."""
        bucket = Bucket(decides=False)
        backend = BucketBackend(BackendRef("bucket://test"), bucket)
        assert backend.create("cache/layers/k", b"x")
        assert bucket.requests == ["stat", "put"]
        # as if another process had created it between the two
        bucket.failing["stat"] = StorageError("not asked")
        bucket.stat = lambda key: None
        assert not backend.create("cache/layers/k", b"y")
        bucket.requests.clear()
        assert not backend.create("cache/layers/k", b"z")
        assert bucket.requests == ["put"]

    def test_probe_leaves_nothing(self) -> None:
        """Trying whether a bucket obeys leaves no object, also where it fails."""
        bucket = Bucket(decides=False, obeys=False)
        backend = BucketBackend(BackendRef("bucket://test"), bucket)
        assert not backend.creates_atomically()
        assert bucket.objects == {}


class TestReading:
    def test_stream_of_a_small_object_is_one_request(self, bucket: Bucket, backend: BucketBackend) -> None:
        """The first piece tells the size, so nothing is asked before."""
        backend.replace("index.json", b"x" * 100)
        bucket.requests.clear()
        assert b"".join(backend.stream("index.json", 10, 20)) == b"x" * 10
        assert bucket.requests == ["get"]

    def test_object_that_is_replaced_while_it_is_read(self, backend: BucketBackend) -> None:
        """A reader never gets a mix of two contents."""
        backend.replace("index.json", b"a" * (2 * BLOCK))
        stream = backend.stream("index.json")
        next(stream)
        backend.replace("index.json", b"b" * (2 * BLOCK))
        with pytest.raises(StorageError, match="was replaced"):
            next(stream)

    def test_signed_url_of_a_time_and_a_method(self, backend: BucketBackend) -> None:
        """Only what a service can sign is asked of it."""
        assert backend.signed_url("index.json") == "https://bucket/index.json?GET"
        for expires in (0, 604_801):
            with pytest.raises(InvalidConfig):
                backend.signed_url("index.json", expires=expires)


class TestRetrying:
    def test_pauses_grow(self) -> None:
        """Each pause is longer than the one before, up to a bound, and every one is an event."""
        events: list[StorageRetried] = []
        retrying = Retrying(attempts=6, pause=0.001, longest=0.004, on_event=events.append)

        def fail(attempt: int) -> None:
            raise ConnectionResetError("https://me:hunter2@host reset")

        with pytest.raises(ConnectionResetError):
            retrying("get", "k", fail, lambda error: True)
        assert [event.attempt for event in events] == [1, 2, 3, 4, 5]
        lower = [0.001, 0.002, 0.004, 0.004, 0.004]
        assert all(low <= event.delay <= 2 * low for low, event in zip(lower, events, strict=True))
        assert "hunter2" not in str(events)

    def test_what_will_not_change_is_told_at_once(self) -> None:
        """An error that is not transient is raised at the first try."""
        tries = []

        def fail(attempt: int) -> None:
            tries.append(attempt)
            raise ValueError

        with pytest.raises(ValueError):
            Retrying()("get", "k", fail, lambda error: isinstance(error, OSError))
        assert tries == [1]

"""Layers from entries to storage: what is written, and what is left when something fails."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from nixery_core.archive import store_entries
from nixery_core.cancellation import Cancellation
from nixery_core.compression import Buffer, Codec, GzipCodec, NoCodec, ZstdCodec
from nixery_core.errors import Cancelled, InvalidDocument, StorageError, StorageFull, StoreReadError
from nixery_core.events import BuildEvent, LayerProgress
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import PROGRESS, BuiltLayer, LayerCache, LayerJob, LayerWriter, build_layer
from nixery_core.model.digest import Digest
from nixery_core.model.oci import LAYER_GZIP, Descriptor
from nixery_core.model.storepath import StorePath
from nixery_core.storage.backend import Backend, BlobWriter
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.keys import blob_key, layer_cache_key
from nixery_core.storage.local import LocalBackend
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.reader import EntryType, StoreEntry
from nixery_core.testing.memory_store import Executable, MemoryStore
from nixery_core.testing.trees import write_store

HELLO = StorePath("0" * 32, "hello-1.0")
GLIBC = StorePath("1" * 32, "glibc-2.39")
STORE = MemoryStore(
    {
        HELLO: {"bin": {"hello": Executable(b"#!/bin/sh\necho hello\n")}},
        GLIBC: {"lib": {"libc.so": bytes(range(256)) * 20_000, "empty": b""}},
    }
)
KEY = "k" * 64
# what nix-hash says of it
HELLO_NAR_HASH = "sha256:0419pif2rvriijb8s48j2cnzyg7h2d87nhpvxxy41bfzgjwa9sxx"


@pytest.fixture
def backend() -> Backend:
    """An empty storage in memory."""
    return FsspecBackend(f"memory://{uuid.uuid4()}")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not set(threading.enumerate()) <= before:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def helpers(request: pytest.FixtureRequest) -> Iterator[Helpers | None]:
    """Threads that help to compress, as many as asked for."""
    if not request.param:
        yield None
        return
    with ThreadPoolExecutor(request.param) as pool:
        yield Helpers(pool, request.param)


def write(backend: Backend, codec: Codec | None = None, helpers: Helpers | None = None, **arguments: Any) -> BuiltLayer:
    writer = LayerWriter(backend, GzipCodec() if codec is None else codec, helpers)
    return writer.write(store_entries(STORE.trees, STORE), layer_key=KEY, **arguments)


def everything(backend: Backend) -> list[str]:
    return [info.key for info in backend.list("")]


class TestLayerWriter:
    @pytest.mark.parametrize("codec", [GzipCodec(), ZstdCodec(), NoCodec()], ids=lambda codec: codec.id)
    def test_layer_is_what_its_description_says(self, backend: Backend, codec: Codec) -> None:
        """Digest and size are those of the blob, diff_id and size those of the tar in it."""
        built = write(backend, codec)
        blob = read_blob(backend, built.descriptor)
        archive = b"".join(codec.decompress([blob]))
        assert built.descriptor.media_type == codec.media_type
        assert built.diff_id == Digest.of(archive)
        assert built.uncompressed_size == len(archive)
        assert built.layer_key == KEY
        assert everything(backend) == [blob_key(built.descriptor.digest)]
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert len(tar.getmembers()) == 2 + 3 + 4

    def test_blob_is_the_frames_of_fixed_chunks(self, backend: Backend) -> None:
        """Chunk boundaries depend on the archive alone, so chunks may be compressed in any order."""
        codec = GzipCodec()
        blob = read_blob(backend, write(backend, codec).descriptor)
        archive = gzip.decompress(blob)
        assert len(archive) > 3 * codec.chunk_bytes
        chunks = [archive[at : at + codec.chunk_bytes] for at in range(0, len(archive), codec.chunk_bytes)]
        assert blob == b"".join(codec.compress(chunk) for chunk in chunks)

    def test_equal_input_gives_equal_layers(self, backend: Backend, tmp_path: Path) -> None:
        """The same store paths give the same layer from memory or disk, into any storage, any number of times."""
        write_store(STORE, tmp_path / "store")
        writer = LayerWriter(LocalBackend(tmp_path / "out"), GzipCodec())
        entries = store_entries(STORE.trees, DirectoryReader(str(tmp_path / "store")))
        assert writer.write(entries, layer_key=KEY) == write(backend) == write(backend)

    def test_progress_is_told_now_and_then(self, backend: Backend) -> None:
        """Events count up, a few MiB apart."""
        store = MemoryStore({HELLO: {f"f{number:02}": bytes(1 << 20) for number in range(20)}})
        events: list[BuildEvent] = []
        writer = LayerWriter(backend, NoCodec())
        writer.write(store_entries([HELLO], store), layer_key=KEY, on_event=events.append)
        assert all(isinstance(event, LayerProgress) and event.layer_key == KEY for event in events)
        archived = [event.archived for event in events if isinstance(event, LayerProgress)]
        assert 3 <= len(archived) <= 20 * (1 << 20) // PROGRESS
        assert all(later - earlier >= PROGRESS for earlier, later in zip([0, *archived], archived, strict=False))

    def test_cancelled_before_it_began(self, backend: Backend) -> None:
        """A cancelled token stops the work before anything is read."""
        token = Cancellation()
        token.cancel()
        with pytest.raises(Cancelled):
            LayerWriter(backend, GzipCodec()).write(Unreadable(), layer_key=KEY, cancellation=token)
        assert everything(backend) == []

    def test_cancelled_half_way(self, backend: Backend) -> None:
        """A token that is cancelled while a layer is written stops it soon, and nothing is left."""
        token = Cancellation()
        store = MemoryStore({HELLO: {f"f{number:02}": bytes(1 << 20) for number in range(64)}})
        events: list[BuildEvent] = []

        def cancel(event: BuildEvent) -> None:
            events.append(event)
            token.cancel("enough")

        writer = LayerWriter(backend, NoCodec())
        with pytest.raises(Cancelled, match="enough"):
            writer.write(store_entries([HELLO], store), layer_key=KEY, on_event=cancel, cancellation=token)
        assert len(events) == 1
        assert everything(backend) == []


class Unreadable:
    def __iter__(self) -> Iterator[Any]:
        pytest.fail("the entries were read")


class Boom(Exception):
    """A failure that is not ours."""


@attrs.frozen
class FailingReader:
    """Reads a store until the failure."""

    error: BaseException
    half_way: bool

    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        yield StoreEntry(name=b"", type=EntryType.DIRECTORY)
        if not self.half_way:
            raise self.error
        yield StoreEntry(name=b"big", type=EntryType.REGULAR, size=8 << 20, contents=self._contents)

    def _contents(self) -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(1 << 20)
        raise self.error

    listing = entries

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        raise NotImplementedError


@attrs.frozen
class FailingCodec(GzipCodec):
    """Compresses the first chunk, then fails."""

    error: BaseException = attrs.field(factory=Boom, kw_only=True)

    def compress(self, chunk: Buffer) -> bytes:
        if bytes(chunk[:4]) == b"nix/":
            return b"first"
        raise self.error


class FailingWriter:
    """A blob that fails in the named call, and whose cancel fails too."""

    def __init__(self, blob: BlobWriter, where: str, error: BaseException) -> None:
        self._blob, self._where, self._error = blob, where, error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._where == "write":
            raise self._error
        self._blob.write(data)

    def commit(self, digest: Digest) -> None:
        if self._where == "commit":
            raise self._error
        self._blob.commit(digest)

    def cancel(self) -> None:
        self._blob.cancel()
        raise StorageError("cancel failed as well")


@attrs.frozen
class FailingBackend:
    """A storage whose blobs fail."""

    inner: Backend
    where: str
    error: BaseException

    def open_blob(self) -> BlobWriter:
        if self.where == "open":
            raise self.error
        return FailingWriter(self.inner.open_blob(), self.where, self.error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def failing_event(error: BaseException) -> Callable[[BuildEvent], None]:
    def fail(event: BuildEvent) -> None:
        raise error

    return fail


ERRORS = [StoreReadError("gone"), StorageFull("full"), KeyboardInterrupt(), MemoryError(), Boom()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("local", [True, False], ids=["directory", "memory"])
@pytest.mark.parametrize("helpers", [0, 2], indirect=True, ids=["alone", "helped"])
class TestFailures:
    """Whatever fails, the first cause is raised, nothing is published and nothing is left behind."""

    @pytest.fixture
    def backend(self, local: bool, tmp_path: Path) -> Backend:
        """An empty storage."""
        return LocalBackend(tmp_path / "out") if local else FsspecBackend(f"memory://{uuid.uuid4()}")

    @pytest.mark.parametrize("half_way", [False, True])
    def test_reader(self, backend: Backend, helpers: Helpers | None, error: BaseException, half_way: bool) -> None:
        """The reader fails, between files or within one."""
        reader = FailingReader(error, half_way)
        with pytest.raises(type(error)) as raised:
            LayerWriter(backend, GzipCodec(), helpers).write(store_entries([HELLO], reader), layer_key=KEY)
        assert raised.value is error
        assert everything(backend) == []

    def test_codec(self, backend: Backend, helpers: Helpers | None, error: BaseException) -> None:
        """The codec fails."""
        with pytest.raises(type(error)) as raised:
            write(backend, FailingCodec(error=error), helpers)
        assert raised.value is error
        assert everything(backend) == []

    @pytest.mark.parametrize("where", ["open", "write", "commit"])
    def test_storage(self, backend: Backend, helpers: Helpers | None, error: BaseException, where: str) -> None:
        """The storage fails, at any call; that its cancel fails as well does not hide why."""
        with pytest.raises(type(error)) as raised:
            write(FailingBackend(backend, where, error), None, helpers)
        assert raised.value is error
        assert everything(backend) == []

    def test_callback(self, backend: Backend, helpers: Helpers | None, error: BaseException) -> None:
        """The caller's own callback fails."""
        with pytest.raises(type(error)) as raised:
            write(backend, GzipCodec(), helpers, on_event=failing_event(error))
        assert raised.value is error
        assert everything(backend) == []


class TestBuiltLayer:
    BUILT = BuiltLayer(
        layer_key=KEY,
        descriptor=Descriptor(LAYER_GZIP, Digest.of(b"blob"), 4),
        diff_id=Digest.of(b"tar"),
        uncompressed_size=1024,
    )

    def test_round_trip(self) -> None:
        """What is written is read back."""
        assert BuiltLayer.from_bytes(self.BUILT.to_bytes()) == self.BUILT
        assert pickle.loads(pickle.dumps(self.BUILT)) == self.BUILT

    @pytest.mark.parametrize("field", ["layer_key", "descriptor", "diff_id", "uncompressed_size"])
    def test_missing_field(self, field: str) -> None:
        """An entry without one of its fields is refused."""
        document = self.BUILT.to_json()
        del document[field]
        with pytest.raises(InvalidDocument, match=field):
            BuiltLayer.from_json(document)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("format_version", 2),
            ("uncompressed_size", "1024"),
            ("uncompressed_size", -1),
            ("diff_id", "sha256:x"),
            ("layer_key", 1),
        ],
    )
    def test_wrong_field(self, field: str, value: object) -> None:
        """An entry of another version, or with other types, is refused."""
        with pytest.raises(InvalidDocument):
            BuiltLayer.from_json({**self.BUILT.to_json(), field: value})


class TestLayerCache:
    def test_kept_layer_is_found(self, backend: Backend) -> None:
        """What was stored is found again, equal in every field."""
        built = write(backend)
        assert LayerCache(backend).find(KEY) is None
        assert LayerCache(backend).store(built) == built
        assert LayerCache(backend).find(KEY) == built

    def test_first_writer_wins(self, backend: Backend) -> None:
        """Who comes second gets the layer of the first, so every image names the same blob."""
        first, second = write(backend, GzipCodec()), write(backend, GzipCodec(1))
        assert first != second
        assert LayerCache(backend).store(first) == first
        assert LayerCache(backend).store(second) == first
        assert LayerCache(backend).find(KEY) == first

    def test_entry_without_its_blob_is_a_miss_and_is_mended(self, backend: Backend) -> None:
        """A blob that somebody deleted is written again, not believed in."""
        first = write(backend, GzipCodec())
        LayerCache(backend).store(first)
        backend.delete(blob_key(first.descriptor.digest))
        assert LayerCache(backend).find(KEY) is None
        second = write(backend, GzipCodec(1))
        assert LayerCache(backend).store(second) == second
        assert LayerCache(backend).find(KEY) == second

    def test_blob_of_another_size_is_a_miss(self, backend: Backend) -> None:
        """A blob that was cut off is not served."""
        built = write(backend)
        LayerCache(backend).store(built)
        backend.replace(blob_key(built.descriptor.digest), b"short")
        assert LayerCache(backend).find(KEY) is None

    @pytest.mark.parametrize("data", [b"", b"{}", b"not JSON", b"\xff", b"[]", b'{"format_version":2}', b"[" * 100_000])
    def test_corrupt_entry_is_a_miss_and_is_mended(self, backend: Backend, data: bytes) -> None:
        """An entry that cannot be read is replaced by the next writer."""
        backend.create(layer_cache_key(KEY), data)
        assert LayerCache(backend).find(KEY) is None
        built = write(backend)
        assert LayerCache(backend).store(built) == built
        assert LayerCache(backend).find(KEY) == built

    def test_entry_of_another_layer_is_a_miss(self, backend: Backend) -> None:
        """An entry under the wrong key is not believed."""
        built = write(backend)
        backend.create(layer_cache_key("other"), built.to_bytes())
        assert LayerCache(backend).find("other") is None

    def test_future_version_is_a_miss(self, backend: Backend) -> None:
        """An entry of a later format is not half understood."""
        built = write(backend)
        backend.create(layer_cache_key(KEY), json.dumps({**built.to_json(), "format_version": 99}).encode())
        assert LayerCache(backend).find(KEY) is None


class TestLayerJob:
    def test_job_is_all_that_is_needed(self, backend: Backend) -> None:
        """A pickled job writes the layer and then its cache entry."""
        job = LayerJob(
            paths=(HELLO, GLIBC), nar_size=5_000_000, layer_key=KEY, reader=STORE, backend=backend.ref, codec="gzip"
        )
        built = build_layer(pickle.loads(pickle.dumps(job)))
        assert built == write(backend)
        assert LayerCache(backend).find(KEY) == built

    def test_content_that_is_not_its_nar_hash_fails_the_layer(self, backend: Backend) -> None:
        """A damaged store path is found while it is archived; without a hash it is believed."""
        good = Digest.parse_nix(HELLO_NAR_HASH)
        job = LayerJob(paths=(HELLO, GLIBC), nar_size=1, layer_key=KEY, reader=STORE, backend=backend.ref, codec="gzip")
        with pytest.raises(StoreReadError, match=f"{HELLO} does not hold") as raised:
            build_layer(attrs.evolve(job, nar_hashes={HELLO: Digest.of(b"other")}))
        assert "repair" in raised.value.hint
        assert everything(backend) == []
        assert build_layer(attrs.evolve(job, nar_hashes={HELLO: good})) == build_layer(job)

    def test_failed_job_keeps_nothing(self, backend: Backend) -> None:
        """A layer that was not written has no cache entry."""
        missing = StorePath("2" * 32, "missing")
        job = LayerJob(
            paths=(HELLO, missing), nar_size=1, layer_key=KEY, reader=STORE, backend=backend.ref, codec="none"
        )
        with pytest.raises(StoreReadError, match="missing"):
            build_layer(job)
        assert everything(backend) == []


def test_digest_of_a_layer_is_fixed(backend: Backend) -> None:
    """The tar of a layer is equal on every machine and in every release with this ARCHIVE_VERSION."""
    built = write(backend, NoCodec())
    assert built.diff_id.hex == hashlib.sha256(read_blob(backend, built.descriptor)).hexdigest()
    assert built.diff_id.hex == "6b6fabe00afe8b16b42b0ebe6a1ccbe59a81c23efa218d4a4eec68ffc9555498"

"""The stream of a layer: who does the work, in which order, and how much of it waits."""

import gzip
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from nixery_core.cancellation import Cancellation
from nixery_core.compression import Buffer, Codec, GzipCodec, NoCodec
from nixery_core.errors import Cancelled, StorageError
from nixery_core.layer_stream import Helpers, LayerStream, StreamedLayer
from nixery_core.model.digest import Digest

CHUNKS = [bytes([number]) * 1000 for number in range(40)]


class Blob:
    """Takes the frames of a layer."""

    def __init__(self, on_write: Callable[[int], object] = lambda _: None) -> None:
        self.data = b""
        self.writes = 0
        self._on_write = on_write

    def write(self, data: Buffer) -> None:
        self._on_write(self.writes)
        self.data += data
        self.writes += 1

    def commit(self, digest: Digest) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        raise NotImplementedError


@attrs.frozen
class WatchedCodec(GzipCodec):
    """Tells which thread compressed what."""

    before: Callable[[bytes], object] = attrs.field(default=lambda _: None, kw_only=True)

    def compress(self, chunk: Buffer) -> bytes | bytearray:
        self.before(bytes(chunk))
        return GzipCodec.compress(self, chunk)


class Hoarder(Executor):
    """Keeps what it is given and never does it: all of its threads are busy elsewhere."""

    def __init__(self) -> None:
        self.kept: list[Callable[..., Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.kept.append(fn)
        return Future()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def stream(blob: Blob, codec: Codec | None = None, helpers: Helpers | None = None) -> LayerStream:
    return LayerStream(blob, codec or GzipCodec(), helpers=helpers, cancellation=Cancellation())


def written(blob: Blob, codec: Codec | None = None, helpers: Helpers | None = None) -> StreamedLayer:
    layer = stream(blob, codec, helpers)
    for chunk in CHUNKS:
        layer.write(chunk)
    return layer.finish()


@pytest.mark.parametrize("codec", [GzipCodec(), NoCodec()], ids=lambda codec: codec.id)
@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_bytes_do_not_depend_on_the_threads(codec: Codec, workers: int) -> None:
    """Whoever does the work, the layer is the frames of the chunks in their order."""
    blob = Blob()
    with ThreadPoolExecutor(workers or 1) as pool:
        layer = written(blob, codec, Helpers(pool, workers) if workers else None)
    archive = b"".join(CHUNKS)
    assert blob.data == b"".join(codec.compress(chunk) for chunk in CHUNKS)
    assert layer == StreamedLayer(
        diff_id=Digest.of(archive),
        uncompressed_size=len(archive),
        digest=Digest("sha256", hashlib.sha256(blob.data).hexdigest()),
        size=len(blob.data),
    )


def test_threads_help(pool: ThreadPoolExecutor) -> None:
    """Chunks are compressed by several threads at the same time."""
    together = threading.Barrier(2, timeout=10)
    compressing: set[int] = set()

    def meet(chunk: bytes) -> None:
        compressing.add(threading.get_ident())
        if chunk in CHUNKS[:2]:
            together.wait()

    blob = Blob()
    written(blob, WatchedCodec(before=meet), Helpers(pool, 2))
    assert len(compressing) >= 2
    assert gzip.decompress(blob.data) == b"".join(CHUNKS)


def test_threads_that_never_come_are_not_waited_for() -> None:
    """Where every thread is busy, with layers that wait in the same way or with anything, the driver does it all."""
    hoarder, blob = Hoarder(), Blob()
    layer = written(blob, GzipCodec(), Helpers(hoarder, 2))
    assert hoarder.kept
    assert layer == written(Blob())
    # they come when all is done, and find nothing to do
    for work in hoarder.kept:
        work()
    assert gzip.decompress(blob.data) == b"".join(CHUNKS)


def test_what_waits_in_the_pool_holds_no_chunk() -> None:
    """An executor that keeps what it was given keeps little: chunks are let go when their frames are written."""
    hoarder = Hoarder()
    chunks = [bytes(chunk) + b"x" for chunk in CHUNKS]
    before = [sys.getrefcount(chunk) for chunk in chunks]
    layer = stream(Blob(), GzipCodec(), Helpers(hoarder, 2))
    for chunk in chunks:
        layer.write(chunk)
    layer.finish()
    del chunk
    assert len(hoarder.kept) >= len(chunks)
    assert [sys.getrefcount(chunk) for chunk in chunks] == before


def test_slow_storage_slows_the_reader(pool: ThreadPoolExecutor) -> None:
    """No more chunks are taken than a few: what is read waits for what is written."""
    taken = 0
    ahead = []

    def slow(number: int) -> None:
        ahead.append(taken - number)
        time.sleep(0.002)

    layer = stream(Blob(slow), GzipCodec(), Helpers(pool, 2))
    for chunk in CHUNKS:
        taken += 1
        layer.write(chunk)
    layer.finish()
    assert len(ahead) == len(CHUNKS)
    assert max(ahead) <= 2 + 2


def test_many_layers_share_the_places(pool: ThreadPoolExecutor) -> None:
    """However many layers are written at once, few chunks are in memory beside the one that each is at."""
    helpers = Helpers(pool, 2)
    layers = [stream(Blob(), GzipCodec(), helpers) for _ in range(10)]
    for chunk in CHUNKS:
        for layer in layers:
            layer.write(chunk)
    assert len({layer.finish() for layer in layers}) == 1
    # all places are free again
    assert [helpers.take_place() for _ in range(4)] == [True, True, True, False]


def test_failure_of_a_helper_is_the_drivers(pool: ThreadPoolExecutor) -> None:
    """An error in a helping thread is raised where the layer is written, the very same one."""
    error = MemoryError("no room")

    def fail(chunk: bytes) -> None:
        if chunk == CHUNKS[7]:
            raise error

    blob = Blob()
    helpers = Helpers(pool, 2)
    layer = stream(blob, WatchedCodec(before=fail), helpers)
    with pytest.raises(MemoryError) as raised:
        _write_all(layer)
    assert raised.value is error
    layer.abandon()
    assert blob.data == b"".join(GzipCodec().compress(chunk) for chunk in CHUNKS[:7])
    assert [helpers.take_place() for _ in range(4)] == [True, True, True, False]


def test_abandoned_stream_leaves_no_work_behind(pool: ThreadPoolExecutor) -> None:
    """After a failure of the storage no thread still compresses, and what waited is not begun."""
    busy = 0
    lock = threading.Lock()

    def slow(chunk: bytes) -> None:
        nonlocal busy
        with lock:
            busy += 1
        time.sleep(0.01)
        with lock:
            busy -= 1

    def fail(number: int) -> None:
        raise StorageError("the disk is gone")

    helpers = Helpers(pool, 2)
    layer = stream(Blob(fail), WatchedCodec(before=slow), helpers)
    with pytest.raises(StorageError):
        _write_all(layer)
    layer.abandon()
    assert busy == 0
    time.sleep(0.03)
    assert busy == 0
    assert [helpers.take_place() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("codec", [GzipCodec(), NoCodec()], ids=lambda codec: codec.id)
def test_cancellation_is_looked_at_for_each_chunk(codec: Codec, pool: ThreadPoolExecutor) -> None:
    """A cancelled layer takes no further chunk, and is not finished."""
    token = Cancellation()
    layer = LayerStream(Blob(), codec, helpers=Helpers(pool, 2), cancellation=token)
    layer.write(CHUNKS[0])
    token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        layer.write(CHUNKS[1])
    layer.abandon()


def _write_all(layer: LayerStream) -> None:
    for chunk in CHUNKS:
        layer.write(chunk)
    layer.finish()

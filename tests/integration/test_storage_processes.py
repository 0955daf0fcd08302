"""One directory, many processes: races, kills, full and read-only disks."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from nixery_core.archive import store_entries
from nixery_core.compression import Codec, GzipCodec, NoCodec, ZstdCodec
from nixery_core.errors import StorageError, StorageFull
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import BuiltLayer, LayerCache, LayerJob, LayerWriter, build_layer
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.storage.keys import BLOBS, STAGING, blob_key
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.testing.memory_store import MemoryStore
from nixery_core.testing.trees import write_store

PATHS = tuple(StorePath(str(number) * 32, f"package-{number}") for number in range(4))
STORE = MemoryStore({path: {"file": path.base.encode() * 30_000} for path in PATHS})


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that inherit nothing, as those of another machine."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def job(directory: Path, paths: tuple[StorePath, ...], key: str, codec: str = "gzip") -> LayerJob:
    return LayerJob(
        paths=paths,
        nar_size=1,
        layer_key=key,
        reader=DirectoryReader(str(directory / "store")),
        backend=LocalBackend(directory / "out").ref,
        codec=codec,
    )


def test_layers_are_built_by_other_processes(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A process pool builds the layers that this process would build, and their cache entries."""
    write_store(STORE, tmp_path / "store")
    jobs = [job(tmp_path, (path,), f"key{number}") for number, path in enumerate(PATHS)]
    built = list(pool.map(build_layer, jobs))
    backend = LocalBackend(tmp_path / "out")
    assert built == [LayerCache(backend).find(one.layer_key) for one in jobs]
    here = LocalBackend(tmp_path / "here")
    for one, layer in zip(jobs, built, strict=True):
        entries = store_entries(one.paths, STORE)
        assert layer == build_layer(job(tmp_path, one.paths, one.layer_key))
        assert layer.diff_id == LayerWriter(here, NoCodec()).write(entries, layer_key="x").diff_id
    assert list(backend.list(STAGING)) == []


def test_processes_agree_on_one_layer(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Processes that build one layer at once, even with other bytes, all return the one that is kept."""
    write_store(STORE, tmp_path / "store")
    jobs = [job(tmp_path, PATHS, "key", codec) for codec in ("gzip", "gzip:1", "gzip:9")]
    built: list[BuiltLayer] = list(pool.map(build_layer, jobs))
    assert len(set(map(BuiltLayer.to_bytes, built))) == 1
    assert LayerCache(LocalBackend(tmp_path / "out")).find("key") == built[0]


def test_error_of_another_process_arrives(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """An error keeps its type, its words and its key on the way back, and the pool lives on."""
    write_store(STORE, tmp_path / "store")
    (tmp_path / "out").write_bytes(b"a file where the storage should be")
    with pytest.raises(StorageError) as raised:
        pool.submit(build_layer, job(tmp_path, PATHS, "key")).result()
    assert raised.value.key.startswith(STAGING)
    assert str(tmp_path / "out") in raised.value.message
    assert pool.submit(os.getpid).result() != os.getpid()


def _create(url: str, key: str, number: int) -> bool:
    return open_backend(url).create(key, b"%d" % number * 1000)


def test_one_of_many_processes_creates(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Of many processes exactly one creates an object, and its content is what all read."""
    backend = LocalBackend(tmp_path / "out")
    for attempt in range(20):
        key = f"cache/layers/{attempt}"
        futures = [pool.submit(_create, backend.ref.url, key, number) for number in range(6)]
        winners = [number for number, future in enumerate(futures) if future.result()]
        assert [backend.get(key)] == [b"%d" % number * 1000 for number in winners]
    assert list(backend.list(STAGING)) == []


ENDLESS = """
import itertools, sys
from nixery_core.archive import ArchiveEntry
from nixery_core.compression import Codec, GzipCodec, NoCodec, ZstdCodec
from nixery_core.layer_writer import LayerWriter
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.reader import EntryType

def contents():
    yield bytes(1 << 20)

def entries():
    for number in itertools.count():
        name = b"%012d" % number
        yield ArchiveEntry(name=name, type=EntryType.REGULAR, mode=0o444, size=1 << 20, contents=contents)
        if number == 20:
            print("writing", flush=True)
            sys.stdin.read()

try:
    LayerWriter(open_backend(sys.argv[1]), NoCodec()).write(entries(), layer_key="k")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGTERM, None), (signal.SIGKILL, None)])
def test_killed_writer_publishes_nothing(tmp_path: Path, number: signal.Signals, left: int | None) -> None:
    """Whatever ends a process, no part of its layer is ever a blob; where it can clean up it does."""
    backend = LocalBackend(tmp_path / "out")
    command = [sys.executable, "-c", ENDLESS, backend.ref.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert len(list(backend.list(STAGING))) == 1
        process.send_signal(number)
        process.wait(30)
    assert list(backend.list(BLOBS)) == []
    if left is not None:
        assert len(list(backend.list(STAGING))) == left


@pytest.fixture
def mounted(tmp_path: Path, require: Callable[..., None]) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system; only root may."""
    require("mount", "umount")
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    mounts: list[Path] = []

    def mount(options: str) -> Path:
        where = tmp_path / f"mount{len(mounts)}"
        where.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)
        mounts.append(where)
        return where

    yield mount
    for where in mounts:
        subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize("codec", [NoCodec(), GzipCodec(), ZstdCodec()], ids=lambda codec: codec.id)
def test_full_disk(mounted: Callable[[str], Path], codec: Codec) -> None:
    """A layer that does not fit is an error that says so; nothing of it is left, and small things still fit."""
    backend = LocalBackend(mounted("size=4m") / "out")
    store = MemoryStore({PATHS[0]: {f"f{number}": os.urandom(1 << 20) for number in range(8)}})
    with ThreadPoolExecutor(2) as pool, pytest.raises(StorageFull) as raised:
        LayerWriter(backend, codec, Helpers(pool, 2)).write(store_entries([PATHS[0]], store), layer_key="k")
    assert "free some space" in raised.value.hint
    assert list(backend.list("")) == []
    assert backend.create("index.json", b"{}") is True


def test_no_inode_left(mounted: Callable[[str], Path]) -> None:
    """A disk without room for another file is an error that says so, from every call."""
    backend = LocalBackend(mounted("size=4m,nr_inodes=3") / "out")
    calls: list[Callable[[], object]] = [
        lambda: backend.create("cache/layers/k", b"x"),
        lambda: backend.replace("refs/a/_tags/v", b"x"),
        lambda: LayerWriter(backend, NoCodec()).write(store_entries(PATHS, STORE), layer_key="k"),
    ]
    for call in calls:
        with pytest.raises(StorageFull):
            call()
    assert list(backend.list("")) == []


def test_read_only_disk(mounted: Callable[[str], Path]) -> None:
    """A disk that may not be written is read as before, and writing says why not."""
    where = mounted("size=4m")
    backend = LocalBackend(where / "out")
    backend.create("index.json", b"{}")
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    with pytest.raises(StorageError) as raised:
        backend.create("cache/layers/k", b"x")
    assert "Read-only" in raised.value.message
    assert raised.value.hint
    assert backend.get("index.json") == b"{}"


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A layer of half a GB needs no more memory than one of a few MB."""
    code = """
import os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from nixery_core.archive import ArchiveEntry
from nixery_core.compression import codec
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import LayerWriter
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.reader import EntryType
noise = [os.urandom(1 << 20) for _ in range(16)]
count = int(sys.argv[3])
entry = ArchiveEntry(
    name=b"f", type=EntryType.REGULAR, mode=0o444, size=count << 20,
    contents=lambda: (noise[n % 16] for n in range(count)))
with ThreadPoolExecutor(2) as pool:
    LayerWriter(open_backend(sys.argv[1]), codec(sys.argv[2]), Helpers(pool, 2)).write([entry], layer_key="k")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    for codec in ("gzip-fast", "zstd"):
        peaks = [
            int(
                subprocess.run(
                    [sys.executable, "-c", code, tmp_path / "out", codec, size], check=True, capture_output=True
                ).stdout
            )
            for size in ("40", "512")
        ]
        assert peaks[1] - peaks[0] < 16 << 10, peaks


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    """While a process writes a blob again and again, another one reads it whole or not at all."""
    backend = LocalBackend(tmp_path / "out")
    data = os.urandom(3 << 20)
    code = """
import sys
from nixery_core.model.digest import Digest
from nixery_core.storage.plugins import open_backend
data = sys.stdin.buffer.read()
backend = open_backend(sys.argv[1])
for _ in range(40):
    writer = backend.open_blob()
    for start in range(0, len(data), 10_000):
        writer.write(data[start:start + 10_000])
    writer.commit(Digest.of(data))
"""
    seen = 0
    with subprocess.Popen([sys.executable, "-c", code, backend.ref.url], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(data)
        process.stdin.close()
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            info = backend.stat(blob_key(Digest.of(data)))
            if info is not None:
                assert info.size == len(data)
                assert backend.get(blob_key(Digest.of(data))) == data
                seen += 1
    assert process.returncode == 0
    assert seen

"""Layers from a binary cache beside layers from a directory, and closures over HTTP from another process.

    python tests/benchmarks/binary_cache.py [--size MIB] [--paths 1000] [--rounds 3] [--codec NAME] [--json]

A corpus of programs, texts and small files is written as one store path, into a directory and into
a cache (not packed), and then as a layer from each, in turns.  What counts is the ratio within one run.

    directory_mb_s        bytes of file content in a second, in millions: from the directory
    archive_mb_s          the same from the NAR in the cache, counted and hashed on its way
    ratio                 archive_mb_s / directory_mb_s
    rss_growth_mib        most memory of a process that writes the layer from the NAR, less that of an idle one, MiB
    parser_entries_s      entries of small files in a second of processor time, by the NAR parser alone
    parser_mb_s           bytes of one large file in a second of processor time, by the NAR parser alone
    closure_s             resolving a closure of --paths over HTTP on loopback, signatures verified, seconds
    narinfos_cpu_s        processor time of this side for 100,000 narinfos, extrapolated from ten times --paths, seconds
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nixery_core.compression import codec as codec_by_name
from nixery_core.errors import InvalidConfig
from nixery_core.layer_writer import BuiltLayer, LayerJob, build_layer
from nixery_core.model.digest import Digest, nix_base32
from nixery_core.model.storepath import StorePath
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.nar import nar_entries
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.reader import StoreReader
from nixery_core.testing.binary_cache import SigningKey, nar_bytes, write_cache
from nixery_core.testing.memory_store import Executable, MemoryStore, Tree
from nixery_core.testing.trees import write_store

MIB = 1 << 20
PATH = StorePath("0" * 32, "corpus")
KEY = SigningKey("benchmark-1", bytes(32))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--size", type=int, default=200, metavar="MIB", help="of the corpus (default: 200)")
    parser.add_argument("--paths", type=int, default=1000, help="of the closure (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (default: 3)")
    parser.add_argument("--codec", default="gzip-fast", help="of the layers (default: gzip-fast)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        print(growth(**json.loads(arguments.child)))
        return 0
    with tempfile.TemporaryDirectory(prefix="nixery-cache-") as folder:
        result = {
            **layers(Path(folder), arguments.size, arguments.rounds, arguments.codec),
            **parser_alone(arguments.rounds),
            **closures(arguments.paths),
        }
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        print("\n".join(f"{name:20} {value}" for name, value in result.items()))
    return 0


def corpus(size: int) -> Tree:
    """About *size* MiB: as many bytes in libraries of this machine as in texts and in small files."""
    rnd = random.Random(1)
    wanted = size * MIB
    tree: dict[str, dict[str, Tree]] = {"lib": {}, "share": {}, "src": {}}
    for number, file in enumerate(sorted(Path("/usr/lib").rglob("*.so*"))):
        if sum(len(data) for data in tree["lib"].values() if isinstance(data, bytes)) > wanted // 2:
            break
        if file.is_file() and not file.is_symlink():
            tree["lib"][f"{number:05}.so"] = file.read_bytes()
    words = [bytes(rnd.choices(b"abcdefghijklmnopqrstuvwxyz", k=rnd.randrange(2, 11))) for _ in range(4000)]

    def text(length: int) -> bytes:
        return b" ".join(rnd.choices(words, k=length // 7))

    for number in range(wanted // 4 // 200_000):
        tree["share"][f"{number:05}.txt"] = text(200_000)
    for number in range(wanted // 4 // 4000):
        tree["src"][f"{number:05}.h"] = Executable(text(4000)) if number % 7 == 0 else text(4000)
    return {**tree}


def layer(reader: StoreReader, folder: Path, codec: str) -> tuple[BuiltLayer, float]:
    """Write the layer into a new storage; return it and the seconds that it took."""
    shutil.rmtree(folder, ignore_errors=True)
    job = LayerJob(
        paths=(PATH,), nar_size=0, layer_key="0" * 64, reader=reader, backend=open_backend(folder).ref, codec=codec
    )
    started = time.perf_counter()
    built = build_layer(job)
    return built, time.perf_counter() - started


def layers(folder: Path, size: int, rounds: int, codec: str) -> dict[str, Any]:
    """Compare the two origins of one layer."""
    store = MemoryStore({PATH: corpus(size)})
    write_store(store, folder / "store")
    write_cache(folder / "cache", store, keys=[KEY])
    content = sum(entry.size for entry in store.listing(PATH))
    try:
        codec_by_name(codec)
    except InvalidConfig:
        codec = "gzip:1"
    directory = DirectoryReader(str(folder / "store"))
    cache = BinaryCacheReader(BinaryCache(str(folder / "cache"), KEY.public))
    times: dict[str, list[float]] = {"directory": [], "archive": []}
    digests = set()
    # the first round warms the caches of the machine
    for number in range(rounds + 1):
        for name, reader in (("directory", directory), ("archive", cache)):
            built, seconds = layer(reader, folder / "images", codec)
            digests.add(built.descriptor.digest)
            if number:
                times[name].append(seconds)
    assert len(digests) == 1, "the layers differ"
    request = {"folder": str(folder), "codec": codec}
    idle, busy = (child({**request, "idle": idle}) for idle in (True, False))
    return {
        "codec": codec,
        "content_mb": round(content / 1e6),
        "directory_mb_s": round(content / min(times["directory"]) / 1e6),
        "archive_mb_s": round(content / min(times["archive"]) / 1e6),
        "ratio": round(min(times["directory"]) / min(times["archive"]), 3),
        "rss_growth_mib": round((busy - idle) / MIB, 1),
    }


def child(request: dict[str, Any]) -> int:
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def growth(folder: str, codec: str, *, idle: bool) -> int:
    """Return the most memory that this process had, bytes."""
    reader = BinaryCacheReader(BinaryCache(f"{folder}/cache", KEY.public))
    reader.caches.find(PATH)
    if not idle:
        layer(reader, Path(folder) / "images", codec)
    # ru_maxrss of a new process begins with that of its parent
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def parser_alone(rounds: int) -> dict[str, Any]:
    """Measure the parser by processor time, which other processes do not take away."""
    small = nar_bytes({f"{i:03}": {f"{j:03}": b"x" * 200 for j in range(100)} for i in range(500)})
    large = nar_bytes(os.urandom(64 * MIB))

    def seconds(data: bytes) -> tuple[float, int]:
        pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
        digest = Digest.of(data)
        best = float("inf")
        for _ in range(rounds):
            started, entries = time.process_time(), 0
            for entry in nar_entries(pieces, nar_hash=digest, nar_size=len(data)):
                entries += 1
                for _piece in entry.contents() if entry.contents else ():
                    pass
            best = min(best, time.process_time() - started)
        return best, entries

    for_small, entries = seconds(small)
    for_large, _ = seconds(large)
    return {"parser_entries_s": round(entries / for_small), "parser_mb_s": round(len(large) / for_large / 1e6)}


def made_up(paths: int) -> tuple[dict[bytes, bytes], StorePath]:
    """Return the narinfos of a closure by the path of their requests, and its root."""
    rnd = random.Random(1)
    named = [StorePath(nix_base32(hashlib.sha256(b"%d" % n).digest()[:20]), f"package-{n}-1.0") for n in range(paths)]
    files = {b"/nix-cache-info": b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"}
    for number, path in enumerate(named):
        # the neighbour, so that all are in one closure, and mostly those that much refers to
        references = {number + 1, *(paths - 1 - int(rnd.random() ** 3 * (paths - 1 - number)) for _ in range(8))}
        if number % 8:
            references.discard(number + 1)
        info = NarInfo(
            store_path=path,
            url=f"nar/{path.hash}.nar.xz",
            compression="xz",
            nar_hash=Digest.of(path.base.encode()),
            nar_size=1000,
            # eight children of a node make it a shallow tree, as closures are
            references=tuple(
                named[other]
                for other in {*references, *range(8 * number + 1, 8 * number + 9)}
                if number < other < paths
            ),
        )
        files[f"/{path.hash}.narinfo".encode()] = KEY.sign(info).to_bytes()
    return files, named[0]


class Server(asyncio.Protocol):
    """Answers GET from memory, over connections that stay open; as little work as possible."""

    def __init__(self, files: dict[bytes, bytes]) -> None:
        self._files = files
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            body = self._files[request.split(b" ", 2)[1]]
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def serve(files: dict[bytes, bytes], tell: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Server(files), "127.0.0.1", 0)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def served(files: dict[bytes, bytes]) -> Iterator[str]:
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(files, theirs), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{mine.recv()}"
    process.terminate()
    process.join()


def closures(paths: int) -> dict[str, Any]:
    """Resolve a closure, and ask for many narinfos."""
    files, root = made_up(paths)
    for url in served(files):
        started = time.perf_counter()
        closure = cached_closure(BinaryCache(url, KEY.public), [root])
        seconds = time.perf_counter() - started
        assert len(closure) == paths, len(closure)
        asked, cpu = 0, time.process_time()
        for _ in range(10):
            cache = BinaryCache(url, allow_unsigned=True)
            asked += sum(1 for _ in cache.narinfos(info.path for info in closure))
        cpu = time.process_time() - cpu
    return {"closure_paths": paths, "closure_s": round(seconds, 3), "narinfos_cpu_s": round(cpu / asked * 100_000, 1)}


if __name__ == "__main__":
    sys.exit(main())

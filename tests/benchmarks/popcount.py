"""How long popcount takes for a binary cache of 100,000 store paths, served over HTTP by another process.

    python tests/benchmarks/popcount.py [--paths 100000] [--connections 32] [--json]

The cache is made up, in the shape of a channel: few packages that nearly everything needs and many that
nobody needs, about five references a path, a quarter of the packages with two or three outputs.  Its
narinfos are as large as those of cache.nixos.org.  What is measured is the command as a user calls
it, from the packed list of store paths to the file: processes are started and ended within the time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import lzma
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
WORDS = ("lib", "python3.12", "perl5.38", "haskell", "emacs", "rust", "gnome", "qt6", "go", "node", "texlive", "r-cran")
ENDINGS = ("core", "utils", "tools", "client", "server", "data", "bindings", "extra", "plugin", "theme", "json")


def base32(text: str) -> str:
    """Return a hash of a store path."""
    return "".join(ALPHABET[byte & 31] for byte in hashlib.sha256(text.encode()).digest())


def made_up_cache(paths: int, seed: int = 1) -> dict[str, bytes]:
    """Return the files of a cache by name: narinfos, ``nix-cache-info`` and ``store-paths.xz``."""
    rnd = random.Random(seed)
    bases: list[str] = []
    files = {"nix-cache-info": b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"}
    while len(bases) < paths:
        number = len(bases)
        version = f"{rnd.randrange(30)}.{rnd.randrange(20)}.{rnd.randrange(9)}"
        name = f"{rnd.choice(WORDS)}-{rnd.choice(ENDINGS)}{number // 3}-{version}"
        deriver = f"{base32(f'{seed} {number} drv')}-{name}.drv"
        outputs = ["", "-dev", "-lib"][: rnd.choice((1, 1, 1, 2, 3, 1, 1, 1))]
        # older packages are the ones that much refers to, as glibc is
        others = (
            {bases[int(number * rnd.random() ** 4)] for _ in range(rnd.choice((1, 2, 3, 5, 8, 13)))}
            if number
            else set()
        )
        for output in outputs:
            base = f"{base32(f'{seed} {number}{output}')}-{name}{output}"
            files[f"{base[:32]}.narinfo"] = narinfo(base, sorted({*others, base}), deriver, rnd)
            # an output refers to the ones before
            others.add(base)
            bases.append(base)
    del bases[paths:]
    files["store-paths.xz"] = lzma.compress("".join(f"/nix/store/{base}\n" for base in bases).encode())
    return files


def narinfo(base: str, references: list[str], deriver: str, rnd: random.Random) -> bytes:
    """Return a narinfo with all fields that cache.nixos.org gives."""
    digest = hashlib.sha256(base.encode()).digest() * 2
    content = "".join(ALPHABET[byte & 31] for byte in digest[:51])
    size = int(rnd.lognormvariate(13, 2)) + 120
    return (
        f"StorePath: /nix/store/{base}\nURL: nar/1{content}.nar.xz\nCompression: xz\nFileHash: sha256:1{content}\n"
        f"FileSize: {size // 3}\nNarHash: sha256:0{content}\nNarSize: {size}\nReferences: {' '.join(references)}\n"
        f"Deriver: {deriver}\nSig: cache.nixos.org-1:{'A' * 86}==\n"
    ).encode()


class Server(asyncio.Protocol):
    """Answers GET from memory, over connections that stay open; as little work as possible."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        for request in requests:
            self._transport.write(self._answers.get(request.split(b" ", 2)[1][1:], missing))


def serve(paths: int, ready: Connection) -> None:
    """Serve a made-up cache until the pipe is closed."""
    files = made_up_cache(paths)
    answers = {
        name.encode(): b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        for name, data in files.items()
    }

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(answers), "127.0.0.1", 0)
        async with server:
            ready.send(server.sockets[0].getsockname()[1])
            await loop.run_in_executor(None, ready.poll, None)

    asyncio.run(run())


def measure(paths: int, connections: int, folder: Path) -> dict[str, float | int]:
    """Run popcount on a made-up cache; return what it took."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(paths, theirs), daemon=True)
    server.start()
    theirs.close()
    url = f"http://127.0.0.1:{ours.recv()}"
    words = ["popcount", f"{url}/store-paths.xz", "--cache", url, "--output", str(folder / "popularity.json")]
    words += ["--connections", str(connections), "--progress", "none"]
    began = time.perf_counter()
    command = os.posix_spawn(sys.executable, [sys.executable, "-m", "nixery_core", *words], os.environ)
    _, status, used = os.wait4(command, 0)
    seconds = time.perf_counter() - began
    ours.close()
    server.join()
    if status:
        raise SystemExit(f"popcount failed with {os.waitstatus_to_exitcode(status)}")
    document = json.loads((folder / "popularity.json").read_bytes())
    return {
        "paths": document["metadata"]["store_paths"],
        "roots": document["metadata"]["root_packages"],
        "names": len(document["counts"]),
        "connections": connections,
        "seconds": round(seconds, 1),
        "paths_per_second": round(document["metadata"]["store_paths"] / seconds),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mb": used.ru_maxrss >> 10,
    }


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.paths, arguments.connections, Path(folder))
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:18}{value:>10,}")


if __name__ == "__main__":
    main()

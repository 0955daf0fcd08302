"""The registry against docker-registry, one process each, on one machine, in one run.

Both serve the same image of sixty small layers and one of 100 MB, from a directory each, over
loopback.  Manifests are asked for by wrk (one thread, 16 connections), blobs by one client that
reads and forgets.  The two take turns, so that both meet the same noise; what counts are the ratios.

Run it: python registry.py [--json] [--seconds 4] [--rounds 3].  Needs docker-registry, skopeo and wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from nixery_core import ImageBuilder, open_backend
from nixery_core.model.oci import MANIFEST
from nixery_core.model.storepath import StorePath
from nixery_core.testing.memory_images import MemorySource
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

LETTERS = "0123456789abcdfghijklmnpqrsvwxyz"
BLOB = 100 << 20
CONNECTIONS = 16
REQUESTS = 10_000
DOWNLOADS = 8
"""Of the large blob, in each round."""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def packages() -> dict[str, MemoryPackage]:
    """Return sixty small packages, and a large one that refers to them all; nothing compresses."""
    small = {
        f"p{number}": MemoryPackage(
            path=StorePath(LETTERS[number // 32] + LETTERS[number % 32] * 31, f"p{number}-1"),
            tree={"bin": {f"p{number}": random.Random(number).randbytes(50_000)}},
        )
        for number in range(60)
    }
    large = MemoryPackage(
        path=StorePath("z" * 32, "big-1"),
        tree={"big": random.Random(0).randbytes(BLOB)},
        references=tuple(package.path for package in small.values()),
    )
    return {**small, "big": large}


def serve(store: str, port: int) -> None:
    """Be the registry."""
    import uvicorn

    from nixery_core.server import registry_app
    from nixery_core.server.sendfile import Sendfile

    builder = ImageBuilder(MemorySource(), open_backend(store), realiser=MemoryRealiser(packages()))
    uvicorn.run(Sendfile(registry_app(builder)), host="127.0.0.1", port=port, log_level="error", access_log=False)


@attrs.frozen
class Server:
    """A registry that runs."""

    name: str
    port: int
    pid: int

    def rss(self) -> float:
        """Return the memory that it holds, MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) / 1000

    def cpu(self) -> float:
        """Return the processor time that it has used, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    """Start both, with the same image in both; give ours and the peer."""
    ours, peer = _free_port(), _free_port()
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/peer}}}}\nhttp: {{addr: '127.0.0.1:{peer}'}}\n"
    )
    commands = [
        [sys.executable, __file__, "--serve", str(folder / "ours"), str(ours)],
        ["docker-registry", "serve", str(config)],
    ]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    try:
        for port in (ours, peer):
            _wait_for(port)
        insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        addresses = [f"docker://127.0.0.1:{port}/big:latest" for port in (ours, peer)]
        subprocess.run(["skopeo", "copy", "-q", *insecure, *addresses], check=True)
        yield Server("ours", ours, running[0].pid), Server("docker-registry", peer, running[1].pid)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def ask(server: Server, path: str, seconds: float) -> dict[str, float]:
    """Return requests per second, and median and 99th percentile of the latency, ms."""
    accept, url = f"Accept: {MANIFEST}", f"http://127.0.0.1:{server.port}{path}"
    result = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-H", accept, url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "Non-2xx" not in result, result
    rate = re.search(r"Requests/sec:\s+([\d.]+)", result)
    latency = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", result)
    }
    assert rate is not None
    return {"rps": float(rate[1]), "p50_ms": latency["50"], "p99_ms": latency["99"]}


def download(connection: socket.socket, path: str, buffer: bytearray) -> float:
    """Return the MB/s of one download."""
    begin = time.perf_counter()
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert head.startswith(b"HTTP/1.1 200"), head
    assert match is not None
    missing = int(match[1]) - len(body)
    while missing:
        missing -= connection.recv_into(buffer, min(missing, len(buffer)))
    return int(match[1]) / 1e6 / (time.perf_counter() - begin)


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """Return every figure."""
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as (ours, peer):
        digest, blob = _names(ours)
        results: dict[str, Any] = {
            label: compare_manifests((ours, peer), f"/v2/big/manifests/{reference}", seconds, rounds)
            for label, reference in (("manifest_by_tag", "latest"), ("manifest_by_digest", digest))
        }
        results["blob_100mb"] = compare_blobs((ours, peer), f"/v2/big/blobs/{blob}", rounds)
        results["manifest_processor_time"] = processor_tail()
        results["memory"] = memory(ours, f"/v2/big/manifests/{digest}")
    return results


def compare_manifests(both: tuple[Server, Server], path: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Ask both in turns; medians over the rounds."""
    runs: dict[str, list[dict[str, float]]] = {server.name: [] for server in both}
    for _ in range(rounds):
        for server in both:
            runs[server.name].append(ask(server, path, seconds))
    figures = {
        name: {field: round(statistics.median(one[field] for one in many), 3) for field in many[0]}
        for name, many in runs.items()
    }
    ours, peer = (figures[server.name] for server in both)
    return {
        **figures,
        "ratio": round(ours["rps"] / peer["rps"], 2),
        "p99_over_median": {
            name: round(statistics.median(one["p99_ms"] / one["p50_ms"] for one in many), 2)
            for name, many in runs.items()
        },
    }


def processor_tail() -> dict[str, float]:
    """Return the processor time of requests for a cached manifest, microseconds, inside the application.

    Unlike a latency it does not depend on what else the machine does.
    """
    from nixery_core.server import registry_app
    from nixery_core.testing.memory_images import memory_builder

    app = registry_app(memory_builder(open_backend("memory://tail"), "git"))

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: object) -> None:
        pass

    async def times() -> list[float]:
        taken = []
        for _ in range(REQUESTS + 1):
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/v2/git/manifests/latest",
                "root_path": "",
                "headers": [(b"accept", MANIFEST.encode())],
                "query_string": b"",
            }
            begin = time.thread_time()
            await app(scope, receive, send)
            taken.append(time.thread_time() - begin)
        # the first one builds the image
        return sorted(taken[1:])

    taken = asyncio.run(times())
    median, tail = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    return {
        "p50_us": round(median * 1e6, 1),
        "p99_us": round(tail * 1e6, 1),
        "max_us": round(taken[-1] * 1e6, 1),
        "p99_over_median": round(tail / median, 2),
    }


def compare_blobs(both: tuple[Server, Server], path: str, rounds: int) -> dict[str, Any]:
    """Download from both in turns; medians, and the processor time of the servers."""
    speeds: dict[str, list[float]] = {server.name: [] for server in both}
    before = {server.name: server.cpu() for server in both}
    buffer = bytearray(1 << 20)
    with contextlib.ExitStack() as stack:
        connections = {
            server.name: stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for server in both
        }
        for _ in range(rounds * DOWNLOADS):
            for server in both:
                speeds[server.name].append(download(connections[server.name], path, buffer))
    gigabytes = rounds * DOWNLOADS * BLOB / 1e9
    figures = {
        server.name: {
            "mb_per_s": round(statistics.median(speeds[server.name])),
            "cpu_s_per_gb": round((server.cpu() - before[server.name]) / gigabytes, 3),
        }
        for server in both
    }
    return {**figures, "ratio": round(figures[both[0].name]["mb_per_s"] / figures[both[1].name]["mb_per_s"], 2)}


def memory(server: Server, path: str) -> dict[str, float]:
    """Return the memory of ours before and after 10,000 requests, MB, behind 2,000 that warm it up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    sizes = []
    for requests in (2_000, REQUESTS):
        for _ in range(requests):
            connection.request("GET", path, headers={"Accept": MANIFEST})
            connection.getresponse().read()
        sizes.append(server.rss())
    connection.close()
    return {"before_mb": round(sizes[0], 1), "after_mb": round(sizes[1], 1), "growth_mb": round(sizes[1] - sizes[0], 2)}


def _names(server: Server) -> tuple[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/v2/big/manifests/latest")
    response = connection.getresponse()
    largest = max(json.loads(response.read())["layers"], key=lambda layer: layer["size"])
    connection.close()
    return str(response.headers["docker-content-digest"]), str(largest["digest"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on {port}")


def table(results: Mapping[str, Any]) -> str:
    """Return the figures for a person."""
    lines = [f"{'':24}{'ours':>12}{'docker-registry':>18}{'ratio':>8}"]
    for label, unit in (("manifest_by_tag", "rps"), ("manifest_by_digest", "rps"), ("blob_100mb", "mb_per_s")):
        row = results[label]
        lines.append(
            f"{label + ', ' + unit:24}{row['ours'][unit]:>12}{row['docker-registry'][unit]:>18}{row['ratio']:>8}"
        )
    for label in ("manifest_by_tag", "manifest_by_digest"):
        tails = results[label]["p99_over_median"]
        lines.append(f"{label}: p99 is {tails['ours']} times the median, and {tails['docker-registry']} times")
    inside = results["manifest_processor_time"]
    lines.append(f"processor time of a manifest: p99 is {inside['p99_over_median']} times the median")
    blob = results["blob_100mb"]
    lines.append(f"blob, server CPU s/GB: {blob['ours']['cpu_s_per_gb']} and {blob['docker-registry']['cpu_s_per_gb']}")
    lines.append(f"memory over {REQUESTS} requests: {results['memory']['growth_mb']} MB more")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("STORE", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]))
        return
    results = measure(arguments.seconds, arguments.rounds)
    print(json.dumps(results) if arguments.json else table(results))


if __name__ == "__main__":
    main()

"""What storage costs: a large layer to S3 beside what s3fs itself needs, and many small layers.

    python tests/benchmarks/storage.py [--json] [--gib 2] [--runs 2] [--small 1000] [--server rclone]

The S3 server is `rclone serve s3` over a folder of the temporary directory, or that of moto.  Each measurement
runs in a process of its own, so that its peak memory is its own, and against a server of its own.  Needs the
dependency groups `backends` and `servers`.  `put_file` of s3fs sends a file that lies on the disk under its
final key.  `streamed` is what a build does: a stream of pieces whose digest is known only at its end.  `staged`
is the same with the option large_blobs="stage".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nixery_core.layer_writer import BuiltLayer, LayerCache
from nixery_core.model.digest import Digest
from nixery_core.model.oci import LAYER_GZIP, Descriptor
from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.servers import LOOPBACK, free_port, serving

PIECE = 1 << 20
KEY, SECRET = "benchmark", "benchmark-secret"


def options(port: int) -> dict[str, Any]:
    return {
        "key": KEY,
        "secret": SECRET,
        "endpoint_url": f"http://{LOOPBACK}:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }


def put_file(port: int, bucket: str, path: Path) -> None:
    """What s3fs does with a file, as it comes."""
    from s3fs import S3FileSystem

    S3FileSystem(**options(port)).put_file(str(path), f"{bucket}/put-file")


def streamed(port: int, bucket: str, path: Path) -> None:
    """What a build does with a layer."""
    write_blob(open_backend(f"s3://{bucket}/streamed", **options(port)), path)


def write_blob(backend: Backend, path: Path) -> None:
    writer, digest = backend.open_blob(), hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            writer.write(piece)
    writer.commit(Digest("sha256", digest.hexdigest()))


def staged(port: int, bucket: str, path: Path) -> None:
    """The same with large_blobs="stage": parts are sent meanwhile, and the service copies the blob into its place."""
    write_blob(open_backend(f"s3://{bucket}/staged", large_blobs="stage", **options(port)), path)


LARGE: dict[str, Callable[[int, str, Path], None]] = {
    "put_file": put_file,
    "streamed": streamed,
    "staged": staged,
}


def measured(name: str, port: int, bucket: str, path: Path) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(port), bucket, str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def child(name: str, port: int, bucket: str, path: Path) -> None:
    # the modules are loaded, and the connection is made, before the clock runs
    open_backend(f"s3://{bucket}", **options(port)).stat("index.json")
    begin = time.monotonic()
    LARGE[name](port, bucket, path)
    seconds = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak, 1)}))


def rclone(port: int, folder: Path) -> list[str]:
    command = ["rclone", "serve", "s3", "--addr", f"{LOOPBACK}:{port}", "--auth-key", f"{KEY},{SECRET}"]
    return [*command, "--vfs-cache-mode", "off", "--config", str(folder / "none"), str(folder / "server")]


def moto(port: int, folder: Path) -> list[str]:
    return ["moto_server", "-H", LOOPBACK, "-p", str(port)]


SERVERS = {"rclone": rclone, "moto": moto}


def large(gib: float, runs: int, names: list[str], folder: Path, server: str) -> dict[str, Any]:
    """Measure a layer of that size; the best of the runs counts for each way."""
    path = folder / "layer"
    with path.open("wb") as file:
        # layers are compressed: their bytes have no pattern
        for number in range(int(gib * 1024)):
            file.write(hashlib.shake_128(str(number).encode()).digest(PIECE))
        # or the disk is busy with it while the first way is measured
        file.flush()
        os.fsync(file.fileno())
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(runs):
        for name in names:
            port = free_port()
            (folder / "server").mkdir()
            command = SERVERS[server](port, folder)
            command[0] = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
            with serving(command, port, log=folder / f"log-{number}-{name}"):
                from s3fs import S3FileSystem

                bucket = f"bucket-{uuid.uuid4()}"
                S3FileSystem(**options(port)).call_s3("create_bucket", Bucket=bucket)
                results[name].append(measured(name, port, bucket, path))
            shutil.rmtree(folder / "server")
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in results.items()}
    size = path.stat().st_size
    return {
        "bytes": size,
        **{
            name: {
                **one,
                "peak_mib": max(other["peak_mib"] for other in results[name]),
                "mb_per_second": round(size / 1e6 / one["seconds"], 1),
                "relative_to_put_file": round(best["put_file"]["seconds"] / one["seconds"], 3),
            }
            for name, one in best.items()
        },
    }


def small(count: int, backend: Backend) -> dict[str, float]:
    """Measure layers of 10 KB: blob and cache entry, one after the other."""
    layers = [hashlib.shake_128(str(number).encode()).digest(10_000) for number in range(count)]
    cache = LayerCache(backend)
    begin = time.monotonic()
    for number, data in enumerate(layers):
        writer = backend.open_blob()
        writer.write(data)
        digest = Digest.of(data)
        writer.commit(digest)
        cache.store(
            BuiltLayer(
                layer_key=f"{number:064x}",
                descriptor=Descriptor(LAYER_GZIP, digest, len(data)),
                diff_id=digest,
                uncompressed_size=len(data),
            )
        )
    seconds = time.monotonic() - begin
    return {"layers": count, "ms_per_layer": round(seconds / count * 1000, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--gib", type=float, default=2.0, help="size of the large layer; 0 leaves it out")
    parser.add_argument("--runs", type=int, default=2, help="measurements of each way; the best counts")
    parser.add_argument("--small", type=int, default=1000, help="number of small layers")
    parser.add_argument(
        "--ways", nargs="+", default=list(LARGE), choices=list(LARGE), help="how to send the large layer"
    )
    parser.add_argument("--server", default="rclone", choices=list(SERVERS), help="what speaks S3")
    parser.add_argument("--folder", type=Path, help="where the server and the files are; a temporary one by default")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, port, bucket, path = arguments.child
        child(name, int(port), bucket, Path(path))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        figures["small_memory"] = small(arguments.small, open_backend(f"memory://{uuid.uuid4()}"))
        figures["small_local"] = small(arguments.small, open_backend(folder / "local"))
        if arguments.gib:
            figures["large_s3"] = large(arguments.gib, arguments.runs, arguments.ways, folder, arguments.server)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for title, found in figures.items():
        print(title)
        for what, value in found.items():
            print(f"  {what}: {value}")


if __name__ == "__main__":
    main()

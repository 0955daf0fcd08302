"""What many images cost: a batch from a binary cache of synthetic packages.

    python tests/benchmarks/batch.py --images 2000 --json

The packages are random but fixed: sizes are spread as those of nixpkgs are (a few large, most small),
and each refers to some of the packages before it, to popular ones more often.  An image has one to
five packages.  The cache is a folder, its archives are packed with zstd, so that what is measured is
the work of this library and not a network.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nixery_core import BinaryCache, BinaryCacheSource, ImageBuilder, ImageSpec, IndexFile, Popularity, open_backend
from nixery_core.index.document import index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.layering.layerer import DEFAULT_BUDGET
from nixery_core.model.storepath import StorePath
from nixery_core.testing.binary_cache import write_cache
from nixery_core.testing.memory_store import Executable, MemoryStore, Tree

_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"


def write_packages(folder: Path, count: int, mean_size: int, chance: random.Random) -> tuple[Path, Popularity]:
    """Write a binary cache and its index; return the index, and how many closures hold each package."""
    paths: list[StorePath] = []
    references: dict[StorePath, list[StorePath]] = {}
    trees: dict[StorePath, Tree] = {}
    closures: list[set[int]] = []
    for number in range(count):
        name = f"package{number}"
        path = StorePath("".join(chance.choices(_ALPHABET, k=32)), f"{name}-1.0")
        # the earlier a package, the more refer to it: libraries
        wanted = {int(number * chance.random() ** 3) for _ in range(min(number, chance.randrange(6)))}
        references[path] = [paths[other] for other in sorted(wanted)]
        closures.append({number}.union(*(closures[other] for other in wanted)))
        size = int(mean_size * chance.lognormvariate(-1.0, 1.4))
        # half of it can be compressed
        content = chance.randbytes(size // 2) + bytes(size // 2)
        trees[path] = {"bin": {name: Executable(content)}, "share": {f"doc{n}": b"text " * 50 for n in range(8)}}
        paths.append(path)
    write_cache(folder / "cache", MemoryStore(trees), references=references, compression="zstd", listings=True)
    entries = {f"package{n}": IndexEntry(outputs={"out": path}, install=("out",)) for n, path in enumerate(paths)}
    index = folder / "index.json"
    index.write_bytes(index_bytes({"x86_64-linux": entries}))
    counts = {f"package{n}": sum(n in closure for closure in closures) for n in range(count)}
    return index, Popularity(counts)


def specs(images: int, packages: int, chance: random.Random) -> Iterator[ImageSpec]:
    """Give distinct images of one to five packages."""
    seen: set[frozenset[int]] = set()
    while len(seen) < images:
        chosen = frozenset(chance.randrange(packages) for _ in range(chance.randint(1, 5)))
        if chosen not in seen:
            seen.add(chosen)
            yield ImageSpec(packages=[f"package{number}" for number in chosen], optional=[], name=f"image{len(seen)}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    chance = random.Random(arguments.seed)
    index, popularity = write_packages(folder, arguments.packages, arguments.mean_size, chance)
    wanted = list(specs(arguments.images, arguments.packages, chance))
    source = BinaryCacheSource(BinaryCache(str(folder / "cache"), allow_unsigned=True), IndexFile(str(index)))
    pool = None
    if arguments.processes:
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(arguments.processes, mp_context=context)
    results: dict[str, Any] = {"images": arguments.images, "packages": arguments.packages}
    builder = ImageBuilder(
        source,
        open_backend(folder / "images"),
        popularity=popularity,
        budget=arguments.budget,
        codec=arguments.codec,
        executor=pool,
    )
    for run in ("first", "again"):
        layers, sizes, uncompressed, errors = 0, {}, 0, 0
        started, worked = time.perf_counter(), time.process_time()
        for result in builder.build_many(wanted, at_once=arguments.at_once):
            if result.image is None:
                errors += 1
                continue
            layers += len(result.image.layers)
            for layer in result.image.layers:
                if layer.layer_key not in sizes:
                    sizes[layer.layer_key] = layer.descriptor.size
                    uncompressed += layer.uncompressed_size
        seconds = time.perf_counter() - started
        results[run] = {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
            "images_per_second": round(arguments.images / seconds, 1),
            "layers": layers,
            "distinct_layers": len(sizes),
            "stored_bytes": sum(sizes.values()),
            "archived_bytes": uncompressed,
            "errors": errors,
        }
    if pool is not None:
        pool.shutdown()
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--packages", type=int, default=400)
    parser.add_argument("--mean-size", type=int, default=200_000, metavar="BYTES")
    parser.add_argument("--budget", type=int, default=DEFAULT_BUDGET)
    parser.add_argument("--codec", default="gzip")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--processes", type=int, default=0, help="write layers in a process pool")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batch-") as folder:
        results = measure(arguments, Path(folder))
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        print()
        return 0
    for run in ("first", "again"):
        print(f"{run}: " + ", ".join(f"{name} {value}" for name, value in results[run].items()))
    print(f"peak RSS {results['peak_rss_mib']} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

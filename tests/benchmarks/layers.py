"""How fast layers are written, beside what everybody else would use, and beside what the machine could do.

    python tests/benchmarks/layers.py [--json] [--size MIB] [--huge]

Makes a corpus of this machine's own files, and writes it as one layer with each codec.  In the same
run: Python's own tarfile and gzip, ``tar | gzip``, ``tar | pigz``, ``tar | zstd``; then 30 layers of
mixed sizes, and 50,000 files of 2 KB.  What is compared are ratios of one run, not numbers of two.

For each codec:

    mb_s                  bytes of file content in a second of time, in millions
    ratio                 size of the blob / bytes of file content
    rss_growth_mib        most memory while writing, less that of the idle library, MiB
    cpu_s                 processor time of all threads, seconds
    speedup_over_stdlib   mb_s / mb_s of tarfile and gzip level 6 with both hashes
    share_of_limit        mb_s / the most that this machine allows: no stage that works in order faster
                          than it is alone, and all processors busy with nothing but the stages

Every figure is the best of --rounds; the storage throws the bytes away, as the pipes of the others do.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _corpus import MIB, make_corpus, make_small_files, split
from _sink import Discard, peak_rss, reset_peak_rss

from nixery_core.archive import ArchiveEntry, store_entries, write_archive
from nixery_core.compression import codec as codec_by_name
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import LayerWriter
from nixery_core.model.storepath import StorePath
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.reader import EntryType

CODECS = ("gzip", "gzip-fast", "zstd", "none")
CORES = os.process_cpu_count() if sys.version_info >= (3, 13) else len(os.sched_getaffinity(0))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document, codecs under 'codecs'")
    parser.add_argument("--size", type=int, default=400, metavar="MIB", help="of the corpus (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (default: 3)")
    parser.add_argument("--workers", type=int, default=CORES, help="threads (default: one for each processor)")
    parser.add_argument("--codec", action="append", metavar="NAME", help="only this codec; may be repeated")
    parser.add_argument("--huge", action="store_true", help="also write a file of 4 GiB, to see the memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        request = json.loads(arguments.child)
        json.dump(TASKS[request.pop("task")](**request), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory(prefix="nixery-layers-") as folder:
        result = measure(Path(folder), arguments)
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        print(report(result))
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    store = folder / "store"
    paths = [path.base for path in make_corpus(store, arguments.size * MIB)]
    small = make_small_files(folder / "small").base
    common = {"rounds": arguments.rounds, "workers": arguments.workers}
    codecs = arguments.codec or CODECS
    corpus = {"store": str(store), "paths": paths}
    # each in a process of its own: memory that one has touched is not the next one's
    stdlib = child("stdlib", **corpus)
    rows = [child("layer", codec=name, **corpus, **common) for name in codecs]
    for row in rows:
        row["speedup_over_stdlib"] = round(row["mb_s"] / stdlib["mb_s"], 2)
    parts = folder / "parts"
    names = [path.base for path in split(store, map(StorePath.parse, paths), parts, 30)]
    result = {
        "cores": CORES,
        "workers": arguments.workers,
        "content_mb": stdlib["content_mb"],
        "codecs": rows,
        "others": [stdlib, *pipes(store, stdlib["content_mb"], arguments.rounds)],
        "thirty_layers": [child("layers", codec=name, store=str(parts), paths=names, **common) for name in codecs],
        "small_files": child("small_files", store=str(folder / "small"), path=small, rounds=arguments.rounds),
    }
    if arguments.huge:
        result["four_gib"] = [child("huge", codec=name, workers=arguments.workers) for name in codecs]
    return result


def child(task: str, **request: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps({"task": task, **request})]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def layer(codec: str, store: str, paths: list[str], rounds: int, workers: int) -> dict[str, Any]:
    """Measure one layer of all store paths, and what its stages cost alone."""
    reader = DirectoryReader(store)
    members = [StorePath.parse(path) for path in paths]
    chosen = codec_by_name(codec)
    write_layer(codec, store_entries(members[:1], reader), 1)
    idle = reset_peak_rss()
    runs = []
    for _ in range(rounds):
        before = time.process_time()
        seconds, sink = write_layer(codec, store_entries(members, reader), workers)
        runs.append((seconds, time.process_time() - before, sink))
    growth = peak_rss() - idle
    seconds, cpu, sink = min(runs, key=lambda run: run[0])
    content = content_of(reader, paths)
    costs = stage_costs(codec, lambda: store_entries(members, reader), rounds)
    # compression is shared among the processors, the other stages each work in order
    limit = max(costs["archive"], costs["sha256"], costs["sha256_blob"], sum(costs.values()) / CORES)
    return {
        "codec": codec,
        "id": chosen.id,
        "mb_s": round(content / 1e6 / seconds, 1),
        "ratio": round(sink.size / content, 4),
        "rss_growth_mib": round(growth, 1),
        "cpu_s": round(cpu, 2),
        "share_of_limit": round(limit / seconds, 3),
        "limit_mb_s": round(content / 1e6 / limit, 1),
        "first_byte_ms": round(min(run[2].first for run in runs) * 1e3, 1),
        "stage_seconds": {name: round(cost, 3) for name, cost in costs.items()},
    }


def content_of(reader: DirectoryReader, paths: Sequence[str]) -> int:
    return sum(entry.size for path in paths for entry in reader.listing(StorePath.parse(path)))


def write_layer(codec: str, entries: Iterator[ArchiveEntry], workers: int) -> tuple[float, Discard]:
    sink = Discard()
    with ThreadPoolExecutor(workers) as pool:
        helpers = Helpers(pool, workers) if workers > 1 else None
        started = time.perf_counter()
        LayerWriter(sink, codec_by_name(codec), helpers).write(entries, layer_key="0" * 64)
        seconds = time.perf_counter() - started
    return seconds, sink


def stage_costs(codec: str, entries: Callable[[], Iterator[ArchiveEntry]], rounds: int) -> dict[str, float]:
    """Return the processor time of each stage alone, in seconds: the least of some rounds."""
    chosen = codec_by_name(codec)
    best: dict[str, float] = {}
    for _ in range(rounds):
        costs = dict.fromkeys(("archive", "sha256", "compress", "sha256_blob"), 0.0)
        archive, blob = hashlib.sha256(), hashlib.sha256()

        def stages(chunk: bytes, costs: dict[str, float] = costs, archive: Any = archive, blob: Any = blob) -> None:
            start = time.thread_time()
            archive.update(chunk)
            hashed = time.thread_time()
            frame = chosen.compress(chunk)
            compressed = time.thread_time()
            blob.update(frame)
            end = time.thread_time()
            costs["sha256"] += hashed - start
            costs["compress"] += compressed - hashed
            costs["sha256_blob"] += end - compressed

        start = time.thread_time()
        write_archive(entries(), stages, piece_bytes=chosen.chunk_bytes)
        costs["archive"] = time.thread_time() - start - sum(costs.values())
        best = {name: min(cost, best.get(name, cost)) for name, cost in costs.items()}
    return best


def layers(codec: str, store: str, paths: list[str], rounds: int, workers: int) -> dict[str, Any]:
    """Measure many layers at once on one pool, the largest first."""
    reader = DirectoryReader(store)
    members = [StorePath.parse(path) for path in paths]
    sizes = {path: sum(entry.size for entry in reader.listing(path)) for path in members}
    ordered = sorted(members, key=lambda path: -sizes[path])
    write_layer(codec, store_entries(ordered[-1:], reader), 1)
    idle = reset_peak_rss()
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            writer = LayerWriter(Discard(), codec_by_name(codec), Helpers(pool, workers))
            futures = [pool.submit(writer.write, store_entries([path], reader), layer_key="0" * 64) for path in ordered]
            for future in futures:
                future.result()
        best = min(best, time.perf_counter() - started)
    costs = stage_costs(codec, lambda: store_entries(members, reader), 1)
    return {
        "codec": codec,
        "mb_s": round(sum(sizes.values()) / 1e6 / best, 1),
        "rss_growth_mib": round(peak_rss() - idle, 1),
        "share_of_limit": round(sum(costs.values()) / CORES / best, 3),
        "largest_mb": round(sizes[ordered[0]] / 1e6, 1),
        "smallest_mb": round(sizes[ordered[-1]] / 1e6, 2),
    }


def small_files(store: str, path: str, rounds: int) -> dict[str, Any]:
    """Measure the archive stage on many small files, from disk and when they have been read already."""
    reader, member = DirectoryReader(store), StorePath.parse(path)
    count = sum(entry.type is EntryType.REGULAR for entry in reader.listing(member))
    kept = list(store_entries([member], reader))
    answer: dict[str, Any] = {"files": count}
    sources: dict[str, Callable[[], Iterator[ArchiveEntry]]] = {
        "files_s": lambda: store_entries([member], reader),
        "files_s_from_memory": lambda: iter(kept),
    }
    for name, entries in sources.items():
        best = float("inf")
        for _ in range(rounds):
            started = time.perf_counter()
            write_archive(entries(), lambda _: None)
            best = min(best, time.perf_counter() - started)
        answer[name] = round(count / best)
    started = time.perf_counter()
    with tarfile.open(fileobj=_Null(), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(Path(store, path), arcname=path)
    answer["files_s_tarfile"] = round(count / (time.perf_counter() - started))
    return answer


def huge(codec: str, workers: int) -> dict[str, Any]:
    """Measure the memory of a layer of 4 GiB that does not compress."""
    noise = os.urandom(64 * MIB)
    pieces = [noise[start : start + MIB] for start in range(0, len(noise), MIB)]
    entry = ArchiveEntry(
        name=b"nix",
        type=EntryType.REGULAR,
        mode=0o444,
        size=4 << 30,
        contents=lambda: (pieces[number % len(pieces)] for number in range(4096)),
    )
    idle = reset_peak_rss()
    seconds, _ = write_layer(codec, iter([entry]), workers)
    growth = peak_rss() - idle
    return {"codec": codec, "rss_growth_mib": round(growth, 1), "mb_s": round(entry.size / 1e6 / seconds, 1)}


def stdlib(store: str, paths: list[str]) -> dict[str, Any]:
    """Measure Python's tarfile and gzip at level 6, with sha256 of both sides: once, since it takes long."""
    content = content_of(DirectoryReader(store), paths)
    sink = _Hashed()
    archive = _Hashed(gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=6, mtime=0))
    before, started = time.process_time(), time.perf_counter()
    with tarfile.open(fileobj=archive, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            tar.add(Path(store, path), arcname=f"nix/store/{path}", filter=_normalised)
    archive.close()
    seconds = time.perf_counter() - started
    return {
        "name": "tarfile + gzip",
        "mb_s": round(content / 1e6 / seconds, 1),
        "ratio": round(sink.size / content, 4),
        "cpu_s": round(time.process_time() - before, 2),
        "content_mb": round(content / 1e6, 1),
    }


def pipes(store: Path, content_mb: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure the programs that a shell script would use; they hash nothing."""
    for program, options in (("gzip", "-6"), ("pigz", "-6"), ("zstd", f"-3 -q -T{CORES}")):
        if shutil.which(program) is None:
            continue
        command = f"tar -C {store} --sort=name -cf - . | {program} {options} -c | wc -c"
        best, cpu, size = float("inf"), 0.0, 0
        for _ in range(1 if program == "gzip" else rounds):
            before, started = os.times(), time.perf_counter()
            size = int(subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE).stdout)
            seconds, after = time.perf_counter() - started, os.times()
            if seconds < best:
                best = seconds
                cpu = after.children_user + after.children_system - before.children_user - before.children_system
        yield {
            "name": f"tar | {program}",
            "mb_s": round(content_mb / best, 1),
            "ratio": round(size / 1e6 / content_mb, 4),
            "cpu_s": round(cpu, 2),
        }


def _normalised(member: tarfile.TarInfo) -> tarfile.TarInfo:
    # else its archive has a record of the time for each file, and not the same bytes as ours
    member.mtime, member.uid, member.gid, member.uname, member.gname = 1, 0, 0, "", ""
    return member


class _Hashed(io.RawIOBase):
    """Hashes and counts what is written, and hands it on."""

    def __init__(self, target: Any = None) -> None:
        self._target = target
        self._state = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._state.update(data)
        self.size += len(data)
        if self._target is not None:
            self._target.write(data)
        return len(data)

    def close(self) -> None:
        if self._target is not None:
            self._target.close()


class _Null(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "layer": layer,
    "layers": layers,
    "small_files": small_files,
    "huge": huge,
    "stdlib": stdlib,
}


def report(result: dict[str, Any]) -> str:
    lines = [f"one layer of {result['content_mb']:.0f} MB on {result['cores']} processors", ""]
    lines.append(f"{'':18}{'MB/s':>8}{'ratio':>9}{'cpu s':>8}{'RSS +MiB':>10}{'x stdlib':>10}{'of limit':>10}")
    for row in result["codecs"]:
        lines.append(
            f"{row['codec']:18}{row['mb_s']:8.0f}{row['ratio']:9.4f}{row['cpu_s']:8.2f}{row['rss_growth_mib']:10.1f}"
            f"{row['speedup_over_stdlib']:10.1f}{row['share_of_limit']:10.2f}"
        )
    lines += [f"{row['name']:18}{row['mb_s']:8.0f}{row['ratio']:9.4f}{row['cpu_s']:8.2f}" for row in result["others"]]
    lines += [
        "",
        "first byte stored after, ms: " + ", ".join(f"{r['codec']} {r['first_byte_ms']}" for r in result["codecs"]),
    ]
    lines += ["", "30 layers at once"]
    for row in result["thirty_layers"]:
        lines.append(
            f"{row['codec']:18}{row['mb_s']:8.0f}{'':17}{row['rss_growth_mib']:10.1f}{'':10}{row['share_of_limit']:10.2f}"
        )
    small = result["small_files"]
    lines += ["", f"{small['files']} files of 2 KB, in a second: {small['files_s']} from disk, "]
    lines[-1] += f"{small['files_s_from_memory']} from memory, {small['files_s_tarfile']} by tarfile"
    for row in result.get("four_gib", []):
        lines.append(f"4 GiB as {row['codec']}: {row['mb_s']:.0f} MB/s, RSS +{row['rss_growth_mib']} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

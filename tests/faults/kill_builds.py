"""Kill builds with SIGKILL at random moments, and look what they leave.

After each kill ``fsck`` must find nothing broken, and the next build must succeed and give the very
image that a build gives that nobody disturbed.  In the end ``fsck --repair`` and ``gc`` must leave
nothing of what the dead left.

Builds are killed in three ways, by turns: after a random time, from outside; before a random
operation on the storage, by themselves, so that short moments are hit as well; and before one of the
operations that publish the name.  Where the storage is no directory only time decides.

    python tests/faults/kill_builds.py --times 200 --seed 1 --json
    python tests/faults/kill_builds.py --store s3://bucket/prefix --options '{"endpoint_url": "http://127.0.0.1:5000"}'
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from nixery_core.builder import ImageBuilder
from nixery_core.events import BuildEvent
from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.layout import delete_ref, list_names
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

MIB = 1 << 20
WAYS = ("time", "operation", "publish")
# with the pin the name begins to be published
_PUBLISHES = "/gc/pins"


@attrs.frozen
class Storage:
    """Where images go; opened by each process for itself."""

    url: str
    options: dict[str, Any]

    def open(self) -> Backend:
        return open_backend(self.url, **self.options)

    @property
    def directory(self) -> str | None:
        return None if "://" in self.url else os.path.abspath(self.url)  # noqa: PTH100 - compared with plain texts


@attrs.frozen
class Source:
    """A source at a revision."""

    revision: str

    def pin(self, tag: str) -> Pin:
        return Pin(kind="memory", url="memory", revision=self.revision, fetch={})


@attrs.define
class Died:
    """A child that was killed, and the last event that it told of."""

    event: str


def packages(seed: int, number: int) -> dict[str, MemoryPackage]:
    """Return a library that all images share, and three programs of their own for each image: some MiB."""
    library = MemoryPackage(path=StorePath("a" * 32, "library"), tree={"lib": tree(random.Random(seed), 24, 4 * MIB)})
    generator = random.Random(f"{seed} {number}")
    found = {"library": library}
    for name, size in (("large", 3 * MIB), ("middle", MIB), ("small", 4000)):
        path = StorePath("".join(generator.choices("0123456789abcdfghijklmnpqrsvwxyz", k=32)), name)
        content = {"bin": {name: b"program"}, "share": tree(generator, 12, size)}
        found[name] = MemoryPackage(path=path, tree=content, references=(library.path,))
    return found


def tree(generator: random.Random, files: int, size: int) -> dict[str, bytes]:
    """Return files of *size* bytes together, half of which compresses."""
    return {f"file{number}": (generator.randbytes(size // files // 2) * 2) for number in range(files)}


def build(storage: Storage, seed: int, number: int, tell: Callable[[str], object]) -> dict[str, str]:
    """Build image *number*; return what every byte of it hashes to."""

    def on_event(event: BuildEvent) -> None:
        tell(type(event).__name__)

    backend = storage.open()
    realiser = MemoryRealiser(packages(seed, number))
    builder = ImageBuilder(Source(f"{seed}-{number}"), backend, realiser=realiser, codec="gzip:1", workers=2)
    tell("Ready")
    image = builder.build(ImageSpec.parse("large/middle/small", tag=f"t{number}"), on_event=on_event)
    for blob in (image.descriptor, image.manifest.config, *image.manifest.layers):
        read_blob(backend, blob)
    return {"manifest": str(image.descriptor.digest), "cached": str(image.cached)}


def in_child(
    work: Callable[[Callable[[str], object]], Any], *, kill_after: float | None = None
) -> tuple[Any, float] | Died:
    """Return what *work* returns in a process of its own and the seconds since it was ready, or how it died."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            result = work(lambda text: os.write(write, f"e{text}\n".encode()))
            os.write(write, f"r{json.dumps(result)}\n".encode())
            code = 0
        except BaseException as error:  # noqa: BLE001 - told to the parent, which has the last word
            os.write(write, f"x{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as lines:
        line, ready = lines.readline(), time.monotonic()
        if kill_after is not None:
            # whatever it does: no one tells it before
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        told = [line, *lines]
    seconds = time.monotonic() - ready
    _, status = os.waitpid(child, 0)
    last = told[-1].rstrip("\n")
    if os.WIFSIGNALED(status):
        return Died(last[1:])
    if last[:1] != "r":
        raise SystemExit(f"a build that was not killed failed: {last[1:]}")
    return json.loads(last[1:]), seconds


def watch_operations(directory: str, before_each: Callable[[str], object]) -> None:
    """Call *before_each* with the name of each operation of this process on files in *directory*."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
            # of two paths the second is where it goes
            paths = [str(path) for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            if paths and paths[-1].startswith(directory):
                before_each(f"{event} {paths[-1].removeprefix(directory)}")

    sys.addaudithook(hook)


def operations_of(storage: Storage, seed: int, number: int) -> list[str]:
    """Return the operations of a build that nobody kills."""

    def work(tell: Callable[[str], object]) -> list[str]:
        seen: list[str] = []
        assert storage.directory
        watch_operations(storage.directory, seen.append)
        build(storage, seed, number, tell)
        return seen

    result = in_child(work)
    assert not isinstance(result, Died)
    found: list[str] = result[0]
    return found


def killed_build(storage: Storage, seed: int, number: int, way: str, chance: Chance) -> Died | tuple[Any, float]:
    """Begin to build image *number*, and kill it."""
    if way == "time":
        return in_child(lambda tell: build(storage, seed, number, tell), kill_after=chance.seconds())
    at = chance.operation(way)

    def work(tell: Callable[[str], object]) -> Any:
        count = 0

        def before_each(operation: str) -> None:
            nonlocal count
            # how many operations come before depends on which layers are stored
            if way == "operation" or count or _PUBLISHES in operation:
                count += 1
            if count > at:
                os.kill(os.getpid(), signal.SIGKILL)

        assert storage.directory
        watch_operations(storage.directory, before_each)
        return build(storage, seed, number, tell)

    return in_child(work)


class Chance:
    """When builds are killed; learnt from builds that were not."""

    def __init__(self, generator: random.Random, operations: list[str], seconds: float) -> None:
        self._generator = generator
        self._seconds = seconds
        first = next(number for number, operation in enumerate(operations) if _PUBLISHES in operation)
        self._count = {"operation": len(operations), "publish": len(operations) - first}

    def seconds(self) -> float:
        return self._generator.uniform(0.0, self._seconds)

    def operation(self, way: str) -> int:
        return self._generator.randrange(self._count[way])


def check(storage: Storage, *, repair: bool) -> dict[str, Any]:
    """Return the broken and the leftover things; with *repair* of any age."""

    def work(tell: Callable[[str], object]) -> dict[str, Any]:
        # with no grace, everything unfinished is left over: no build runs now
        report = fsck(storage.open(), grace=0, repair=repair)
        return {
            "broken": [f"{problem.kind.value} {problem.key}: {problem.detail}" for problem in report.broken],
            "leftovers": [problem.kind.value for problem in report.leftovers],
        }

    result = in_child(work)
    assert not isinstance(result, Died)
    found: dict[str, Any] = result[0]
    return found


def clean(storage: Storage) -> list[str]:
    """Forget all names, repair and collect; return what is left beside the empty index."""

    def work(tell: Callable[[str], object]) -> list[str]:
        backend = storage.open()
        for name, tag in list(list_names(backend)):
            delete_ref(backend, name, tag)
        fsck(backend, repair=True, grace=0)
        collect_garbage(backend, grace=0, keep=0)
        return sorted({info.key for info in backend.list("")} - {"index.json", "oci-layout"})

    result = in_child(work)
    assert not isinstance(result, Died)
    left: list[str] = result[0]
    return left


def run(storage: Storage, times: int, seed: int, show: Callable[[str], object]) -> dict[str, Any]:
    """Kill *times* builds; return what was found."""
    generator = random.Random(seed)
    started = time.monotonic()
    ways = WAYS if storage.directory else WAYS[:1]
    measured = in_child(lambda tell: build(storage, seed, -1, tell))
    assert not isinstance(measured, Died)
    # the library is stored by now, as it is in most builds that follow
    operations = operations_of(storage, seed, -2) if storage.directory else [_PUBLISHES]
    chance = Chance(generator, operations, measured[1])
    kills: Counter[str] = Counter()
    events: Counter[str] = Counter()
    leftovers: Counter[str] = Counter()
    broken: list[str] = []
    different: list[str] = []
    finished = number = 0
    with tempfile.TemporaryDirectory() as undisturbed:
        while sum(kills.values()) < times:
            number += 1
            way = ways[number % len(ways)]
            killed = killed_build(storage, seed, number, way, chance)
            if isinstance(killed, Died):
                kills[way] += 1
                events[killed.event] += 1
            else:
                # it was done before its time had come
                finished += 1
            found = check(storage, repair=False)
            broken += [f"build {number}: {text}" for text in found["broken"]]
            leftovers.update(found["leftovers"])
            if found["leftovers"] and generator.random() < 0.5:
                check(storage, repair=True)
            again = in_child(lambda tell, number=number: build(storage, seed, number, tell))
            clean_storage = Storage(f"{undisturbed}/{number}", {})
            expected = in_child(lambda tell, number=number, to=clean_storage: build(to, seed, number, tell))
            assert not isinstance(again, Died)
            assert not isinstance(expected, Died)
            if again[0]["manifest"] != expected[0]["manifest"]:
                different.append(f"build {number}: {again[0]['manifest']}, not {expected[0]['manifest']}")
            clean(clean_storage)
            if number % 20 == 0:
                show(f"{sum(kills.values())} of {times}: {len(broken)} broken, {len(different)} different")
                clean(storage)
    left = clean(storage)
    return {
        "times": times,
        "seed": seed,
        "kills": dict(kills),
        "finished_before": finished,
        "last_events": dict(events.most_common()),
        "leftovers": dict(leftovers.most_common()),
        "broken": broken,
        "different": different,
        "left_at_end": left,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Run it; the exit code is 1 if anything was broken, different, or left at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="builds that are killed (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices (default: from the clock)")
    parser.add_argument("--store", default=None, help="an empty storage (default: a folder that is removed)")
    parser.add_argument("--options", type=json.loads, default={}, help="of the storage, as a JSON object")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    seed = time.time_ns() % 1_000_000 if arguments.seed is None else arguments.seed

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(arguments.store or str(Path(folder) / "images"), arguments.options)
        result = run(storage, arguments.times, seed, show)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 1 if result["broken"] or result["different"] or result["left_at_end"] else 0


if __name__ == "__main__":
    sys.exit(main())

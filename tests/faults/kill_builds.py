"""Kill builds with SIGKILL at random moments, and look what they leave.

After each kill ``fsck`` must find nothing broken, and the next build must succeed and give the very
image that a build gives that nobody disturbed.  In the end ``fsck --repair`` and ``gc`` must leave
nothing of what the dead left, no unfinished upload either.

Some images have a huge layer of 20 to 60 MiB that does not compress.  Builds are killed in several ways, by
turns.  Everywhere: after a random time, from outside.  In a directory: before a random operation on the
storage, by themselves, so that short moments are hit as well; and before one of the operations that
publish the name.  In a bucket: before a random request, by themselves; while the parts of a huge layer
are sent; and while it becomes a blob, from the request that completes the upload to the last one about
it.  Of the latter two half die by themselves, at one of the parts or steps, and half by chance in time.

In a bucket huge layers are sent in each way that the backend knows, by turns.  After each kill the
uploads that were begun for sure, and not ended, must be listed; and a repair, which follows about half
of them, must leave neither uploads nor anything in ``staging/``.  The output tells what was under way when
builds died.  They tell it in a pipe: some microseconds beside each request, which takes milliseconds.

    python tests/faults/kill_builds.py --times 200 --seed 1 --json
    python tests/faults/kill_builds.py --store s3://bucket/prefix --options '{"endpoint_url": "http://127.0.0.1:5000"}'
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from build_target import EVENT, Images, Storage
from killed_process import Tell, Told, in_child
from object_requests import phase, unfinished
from ways_to_kill import ways

from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.keeping.problem import FsckReport
from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import SupportsUploads
from nixery_core.storage.keys import STAGING
from nixery_core.storage.layout import delete_ref, list_names

# a server may be at work for the dead still, and some tell times in whole seconds: seconds
PATIENCE = 15.0


@attrs.define
class Found:
    """What was found after builds were killed; texts in lists are failures."""

    kills: Counter[str] = attrs.field(factory=Counter)
    """By the way to kill."""
    phases: dict[str, Counter[str]] = attrs.field(factory=dict)
    """For each way to send large blobs, what was under way when builds died."""
    finished_before: int = 0
    """Builds that were done before their time had come."""
    last_events: Counter[str] = attrs.field(factory=Counter)
    leftovers: Counter[str] = attrs.field(factory=Counter)
    unfinished_uploads: int = 0
    """Kills that left one for sure."""
    repairs: int = 0
    broken: list[str] = attrs.field(factory=list)
    unlisted: list[str] = attrs.field(factory=list)
    """Unfinished uploads that the storage did not tell of."""
    not_repaired: list[str] = attrs.field(factory=list)
    different: list[str] = attrs.field(factory=list)
    left_at_end: list[str] = attrs.field(factory=list)

    @property
    def failed(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.broken or self.unlisted or self.not_repaired or self.different or self.left_at_end)

    def count(self, way: str, turn: str, told: Told) -> None:
        """Count a build that was to be killed."""
        if not told.killed:
            self.finished_before += 1
            return
        self.kills[way] += 1
        events = [line.removeprefix(EVENT) for line in told.lines if line.startswith(EVENT)]
        self.last_events[events[-1] if events else "none"] += 1
        if any(line.startswith("+") for line in told.lines):
            phases = self.phases.setdefault(turn, Counter())
            phases[phase(told.lines) or "no large blob is on its way"] += 1


def check(storage: Storage, number: int, told: Told, found: Found) -> bool:
    """Note what a build left, and what of the images before is broken; return whether there is anything to repair."""

    def work(tell: Tell) -> dict[str, Any]:
        backend = storage.open()
        uploads = sorted(_uploads(backend)) if isinstance(backend, SupportsUploads) else None
        # with no grace, everything unfinished is left over: no build runs now
        report = fsck(backend, grace=0)
        return {
            "broken": _broken(report),
            "leftovers": [problem.kind.value for problem in report.leftovers],
            "uploads": uploads,
        }

    seen = in_child(work).result
    expected = unfinished(told.lines) if told.killed else set()
    found.unfinished_uploads += bool(expected)
    found.broken += [f"build {number}: {text}" for text in seen["broken"]]
    if seen["uploads"] is not None:
        found.unlisted += [f"build {number}: {key}" for key in sorted(expected - set(seen["uploads"]))]
    found.leftovers.update(seen["leftovers"])
    return bool(seen["leftovers"] or seen["uploads"])


def broken(storage: Storage) -> list[str]:
    """Return what is broken."""
    found: list[str] = in_child(lambda tell: _broken(fsck(storage.open()))).result
    return found


def _broken(report: FsckReport) -> list[str]:
    return [f"{problem.kind.value} {problem.key}: {problem.detail}" for problem in report.broken]


def repair(storage: Storage) -> list[str]:
    """Repair until nothing is on its way any more; return what stays however long it takes."""

    def work(tell: Tell) -> list[str]:
        backend = storage.open()
        deadline = time.monotonic() + PATIENCE
        while True:
            fsck(backend, repair=True, quick=True, grace=0)
            left = [info.key for info in backend.list(STAGING)] + sorted(_uploads(backend))
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.3)

    left: list[str] = in_child(work).result
    return left


def clean(storage: Storage) -> list[str]:
    """Forget all names, repair and collect; return what is left beside the empty index."""

    def work(tell: Tell) -> list[str]:
        backend = storage.open()
        for name, tag in list(list_names(backend)):
            delete_ref(backend, name, tag)
        deadline = time.monotonic() + PATIENCE
        while True:
            fsck(backend, repair=True, grace=0)
            collect_garbage(backend, grace=0, keep=0)
            left = {info.key for info in backend.list("")} - {"index.json", "oci-layout"}
            left |= {f"the upload of {key}" for key in _uploads(backend)}
            if not left or time.monotonic() > deadline:
                return sorted(left)
            time.sleep(0.3)

    left: list[str] = in_child(work).result
    return left


def _uploads(backend: Backend) -> set[str]:
    return {upload.key for upload in backend.list_uploads()} if isinstance(backend, SupportsUploads) else set()


def run(storage: Storage, images: Images, times: int, show: Callable[[str], object]) -> Found:
    """Kill *times* builds; return what was found."""
    chance = random.Random(images.seed)
    by_turns = storage.by_turns()
    to_kill = ways(storage, images)
    found = Found()
    number = 0
    with tempfile.TemporaryDirectory() as undisturbed:
        while found.kills.total() < times:
            number += 1
            way = to_kill.names[number % len(to_kill.names)]
            turn = list(by_turns)[number // len(to_kill.names) % len(by_turns)]
            target, one = images.target(number, huge=to_kill.huge(number)), by_turns[turn]
            told = to_kill.kill(way, target, one)
            found.count(way, turn, told)
            if check(one, number, told, found) and chance.random() < 0.5:
                found.repairs += 1
                found.not_repaired += [f"build {number}: {key}" for key in repair(one)]
            again = in_child(lambda tell, target=target, to=one: target.build(to, tell)).result
            clean_storage = Storage(f"{undisturbed}/{number}", {})
            expected = in_child(lambda tell, target=target, to=clean_storage: target.build(to, tell)).result
            if again["manifest"] != expected["manifest"]:
                found.different.append(f"build {number}: {again['manifest']}, not {expected['manifest']}")
            shutil.rmtree(clean_storage.url)
            # each look reads all that is there
            if number % (20 if storage.directory else 4) == 0 or found.kills.total() == times:
                found.broken += [f"after build {number}: {text}" for text in broken(storage)]
                found.left_at_end += clean(storage)
                show(f"{found.kills.total()} of {times}: {len(found.broken)} broken, {len(found.different)} different")
    return found


def main() -> int:
    """Run it; the exit code is 1 if anything was broken, different, or left at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="builds that are killed (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices (default: from the clock)")
    parser.add_argument("--store", default=None, help="an empty storage (default: a folder that is removed)")
    parser.add_argument("--options", type=json.loads, default={}, help="of the storage, as a JSON object")
    parser.add_argument(
        "--huge", type=int, nargs=2, default=(20, 60), metavar="MIB", help="sizes of huge layers (default: 20 60)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    seed = time.time_ns() % 1_000_000 if arguments.seed is None else arguments.seed
    started = time.monotonic()

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(arguments.store or str(Path(folder) / "images"), arguments.options)
        # what it imports is not imported again by each child
        storage.open()
        found = run(storage, Images(seed, tuple(arguments.huge)), arguments.times, show)
    seconds = round(time.monotonic() - started, 1)
    result = {"times": arguments.times, "seed": seed, **attrs.asdict(found), "seconds": seconds}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds, kills, collections of garbage and readers, each in a process of its own, on one storage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.storage.layout import delete_ref, list_names
from nixery_core.storage.plugins import open_backend

KILL_BUILDS = Path(__file__).resolve().parents[1] / "faults" / "kill_builds.py"
SECONDS = 12.0

# Builds images that share layers with those of the other builder and with its own of a moment ago, under
# names that are used once; each name is forgotten when two newer ones are there.
BUILD = """
import sys, time
from nixery_core.builder import ImageBuilder
from nixery_core.errors import ObjectNotFound
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.layout import delete_ref
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

class Source:
    def pin(self, tag):
        return Pin(kind="memory", url="memory", revision=None, fetch={})

store, who, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
library = MemoryPackage(path=StorePath("a" * 32, "library"), tree={"lib": {"library": bytes(300_000)}})
programs = [
    MemoryPackage(path=StorePath("bcdf"[n] * 32, f"program{n}"), tree={"bin": {f"p{n}": bytes([n]) * 200_000}},
                  references=(library.path,))
    for n in range(4)
]
set_of = {"library": library, **{f"program{n}": program for n, program in enumerate(programs)}}
backend = open_backend(store)
builder = ImageBuilder(Source(), backend, realiser=MemoryRealiser(set_of), codec="gzip:1", workers=2)
end, number, names = time.monotonic() + seconds, 0, []
while time.monotonic() < end:
    # each program has its turn, and then none for longer than the graces, however quick the machine is: its
    # layer loses its last name and is found again
    turn = int(time.monotonic() / 0.7)
    spec = ImageSpec.parse(f"program{(turn + 2 * (who == 'two')) % 4}", tag=f"{who}{number}")
    number += 1
    try:
        image = builder.build(spec)
    except ObjectNotFound:
        # a busy machine, where a build takes longer than the grace, three times one after the other
        continue
    for layer in image.manifest.layers:
        read_blob(backend, layer)
    names.append((spec.name, spec.tag))
    if len(names) > 2:
        assert delete_ref(backend, *names.pop(0))
print(number)
"""

# Looks at every name again and again: its image has to be whole, or the name has to be gone by then.
READ = """
import sys, time
from nixery_core.errors import ObjectNotFound
from nixery_core.storage.blobs import blob_exists, image_blobs
from nixery_core.storage.layout import list_refs, read_ref
from nixery_core.storage.plugins import open_backend

backend, end, looked = open_backend(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    for name, tag, image in list_refs(backend):
        try:
            missing = [str(blob.digest) for blob in image_blobs(backend, image) if not blob_exists(backend, blob)]
        except ObjectNotFound as error:
            missing = [error.key]
        # no name is used twice, so one that is there still was there all the time
        assert not missing or read_ref(backend, name, tag) is None, (name, tag, missing)
        looked += 1
print(looked)
"""

COLLECT = """
import sys, time
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.storage.plugins import open_backend

backend, end, removed = open_backend(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    removed += collect_garbage(backend, grace=float(sys.argv[3]), keep=0, workers=4).removed_blobs
print(removed)
"""


def test_builds_beside_collectors(tmp_path: Path) -> None:
    """Two builders, two collectors with hardly any grace, and a reader: no name ever lacks a blob."""
    store = str(tmp_path / "images")
    commands = [
        [BUILD, store, "one", SECONDS],
        [BUILD, store, "two", SECONDS],
        [READ, store, SECONDS],
        # shorter than a turn: layers lose their last name and are needed again all the time
        [COLLECT, store, SECONDS, 0.3],
        [COLLECT, store, SECONDS, 0.5],
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command in commands
    ]
    results = [process.communicate(timeout=SECONDS * 10) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors.decode()
    one, two, looked, *removed = (int(output) for output, _ in results)
    # they met: without that the test says nothing
    assert min(one, two, looked, sum(removed)) > 0
    backend = open_backend(store)
    assert fsck(backend).broken == ()
    for name, tag in list(list_names(backend)):
        delete_ref(backend, name, tag)
    fsck(backend, repair=True, grace=0)
    collect_garbage(backend, grace=0, keep=0)
    assert {info.key for info in backend.list("")} == {"index.json", "oci-layout"}


def test_killed_builds_leave_nothing_broken() -> None:
    """Builds that are killed at random moments: ten here, as many as wanted by tests/faults/kill_builds.py."""
    seed = time.time_ns() % 1_000_000
    command = [sys.executable, KILL_BUILDS, "--times", "10", "--seed", str(seed), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, f"seed {seed}: {finished.stdout}{finished.stderr}"
    found = json.loads(finished.stdout)
    assert sum(found["kills"].values()) == 10
    assert len(found["kills"]) == 3
    assert found["broken"] == found["different"] == found["not_repaired"] == found["left_at_end"] == []

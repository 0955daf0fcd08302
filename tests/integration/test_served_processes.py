"""One storage, many processes that count what they serve: every count is there, however they end."""

import random
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.served import ServedCounter
from nixery_core.storage.keys import DAYS, SERVED, STAGING
from nixery_core.storage.local import LocalBackend

# counts on several days that are long over, compacts them all the while, and says what it has written
REPLICA = """
import random, sys, time
from datetime import date, timedelta
from nixery_core.model.digest import Digest
from nixery_core.served import ServedCounter
from nixery_core.storage.plugins import open_backend
url, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rnd, days = random.Random(seed), [date(2026, 11, 1) + timedelta(number) for number in range(4)]
day = days[0]
backend = open_backend(url)
counter = ServedCounter(backend, today=lambda: day)
compacting = ServedCounter(backend, today=lambda: date(2026, 11, 24))
for number in range(rounds):
    day = days[number * len(days) // rounds]
    for _ in range(rnd.randrange(1, 5)):
        counter.record(Digest.of(rnd.choice((b"shell", b"tools"))))
        print("recorded", flush=True)
    counter.flush()
    print("flushed", flush=True)
    if number % 7 == seed % 7:
        compacting.compact()
"""

FORKS = """
import os, sys
from nixery_core.model.digest import Digest
from nixery_core.served import ServedCounter
from nixery_core.storage.plugins import open_backend
counter = ServedCounter(open_backend(sys.argv[1]))
counter.record(Digest.of(b"shell"))
counter.flush()
counter.record(Digest.of(b"shell"))
child = os.fork()
counter.record(Digest.of(b"tools"))
counter.flush()
if child:
    os.waitpid(child, 0)
"""


def described(backend: LocalBackend) -> ServedCounter:
    """A counter of a storage that knows the images of the replicas."""
    counter = ServedCounter(backend, today=lambda: date(2026, 11, 24))
    bash, git = (PathInfo(StorePath(letter * 32, name), 96, []) for letter, name in (("b", "bash-5"), ("c", "git-2")))
    counter.describe(Digest.of(b"shell"), Closure([bash], [bash.path]))
    counter.describe(Digest.of(b"tools"), Closure([bash, git], [git.path]))
    return counter


def test_processes_that_count_and_compact_at_once(tmp_path: Path) -> None:
    """Several processes record, flush and compact the same days; the sum is what they recorded, to the last one."""
    backend = LocalBackend(tmp_path / "images")
    counter = described(backend)
    command = [sys.executable, "-c", REPLICA, backend.ref.url]
    replicas = [subprocess.Popen([*command, str(seed), "40"], stdout=subprocess.PIPE, text=True) for seed in range(4)]
    recorded = 0
    for replica in replicas:
        output, _ = replica.communicate(timeout=120)
        assert replica.returncode == 0
        recorded += output.count("recorded")
    found = counter.popularity()
    assert (found.served, found.unknown) == (recorded, 0)
    assert found.popularity.counts["bash"] == recorded
    # late parts stay beside what was merged; whatever is left, the sum is the same
    counter.compact()
    assert counter.popularity() == found
    assert len(list(backend.list(DAYS))) == 4
    assert list(backend.list(STAGING)) == []


def test_killed_processes(tmp_path: Path) -> None:
    """Processes killed while they write and merge lose nothing that they had written, and count nothing twice."""
    backend = LocalBackend(tmp_path / "images")
    counter = described(backend)
    rnd = random.Random(7)
    least = most = 0
    for seed in range(6):
        command = [sys.executable, "-c", REPLICA, backend.ref.url, str(seed), "100000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as replica:
            assert replica.stdout is not None
            lines = [replica.stdout.readline().strip() for _ in range(rnd.randrange(20, 120))]
            replica.send_signal(signal.SIGKILL)
            lines += replica.stdout.read().split()
        most += lines.count("recorded")
        flushed = len(lines) - 1 - lines[::-1].index("flushed")
        least += lines[:flushed].count("recorded")
    found = counter.popularity()
    # between the object and the word "flushed" a kill may fall
    assert least <= found.served <= most
    counter.compact()
    assert counter.popularity() == found
    assert found.popularity == Popularity({**found.popularity.counts, "bash": found.served})


def test_a_forked_process_counts_for_itself(tmp_path: Path) -> None:
    """What the parent has counted is the parent's to write; the child writes its own, under its own name."""
    backend = LocalBackend(tmp_path / "images")
    counter = described(backend)
    subprocess.run([sys.executable, "-c", FORKS, backend.ref.url], check=True)
    assert counter.popularity().popularity == Popularity({"bash": 4, "git": 2})
    assert len({info.key.rpartition("/")[2].partition("-")[0] for info in backend.list(SERVED)}) == 2

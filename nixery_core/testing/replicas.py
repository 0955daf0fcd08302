"""Several registries on one storage that are killed while clients pull: a trial for storages and servers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from nixery_core.index.document import index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.model.storepath import StorePath
from nixery_core.testing.binary_cache import write_cache
from nixery_core.testing.memory_store import MemoryStore
from nixery_core.testing.servers import LOOPBACK, free_port

LEAST_KILLS = 4
"""How many replicas are killed in one trial at least."""
_LETTERS = "0123456789abcdfghijklmnpqrsvwxyz"


def write_packages(folder: Path, count: int, *, size: int = 200_000, seed: int = 0) -> str:
    """Write a binary cache of *count* packages ``p0``, ``p1`` ... that share one, with an index.

    Returns:
        What names them as the source of ``nixery-core serve``; their paths are not signed.
    """
    chance = random.Random(seed)  # noqa: S311 (content that no codec makes small)
    shared = StorePath("s" * 32, "shared-1")
    paths = {
        f"p{number}": StorePath(_LETTERS[number // 32] + _LETTERS[number % 32] + "0" * 30, f"p{number}-1")
        for number in range(count)
    }
    trees: dict[StorePath, Any] = {path: {"bin": {name: chance.randbytes(size)}} for name, path in paths.items()}
    trees[shared] = {"lib": {"shared": chance.randbytes(size)}}
    write_cache(folder, MemoryStore(trees), references={path: [shared] for path in paths.values()})
    entries = {
        name: IndexEntry.from_json({"outputs": {"out": f"{path.hash}-{path.name}"}}, name)
        for name, path in paths.items()
    }
    index = folder / "index.json"
    index.write_bytes(index_bytes({"x86_64-linux": entries}))
    return f"cache:{folder}#{index}"


@attrs.define(eq=False)
class Replica:
    """One ``nixery-core serve`` at a port of its own."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    port: int = attrs.field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start it, if it does not run."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
            )

    def kill(self) -> None:
        """End it at once, wherever it is."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def stop(self, timeout: float = 60.0) -> int:
        """End it in good order; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


class Replicas:
    """Registries of one storage; use it in a ``with`` statement.

    Args:
        source: As for ``nixery-core serve``.
        store: Likewise.
        folder: For logs.
        options: More options of the command.
        environment: More variables.
        count: How many there are.
    """

    def __init__(
        self,
        source: str,
        store: str,
        folder: Path,
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        count: int = 2,
    ) -> None:
        command = [sys.executable, "-m", "nixery_core", "serve", "--source", source, "--store", store, *options]
        variables = {**os.environ, **(environment or {})}
        self.members = [Replica(command, variables, folder / f"replica-{number}.log") for number in range(count)]

    def __enter__(self) -> Replicas:
        for member in self.members:
            member.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.kill()
                member.process.wait()

    def wait(self) -> None:
        """Return when all of them answer; raises TimeoutError."""
        for member in self.members:
            wait_for(lambda url=member.url: _answers(url))  # type: ignore[misc]

    def pull_while_killing(
        self, names: Sequence[str], *, clients: int = 4, every: tuple[float, float] = (0.3, 1.5), seed: int = 0
    ) -> dict[str, str]:
        """Have clients pull all *names* while one replica after the other is killed and started again.

        The last name is pulled when four were killed, however quick the machine is.

        Returns:
            The digest of each manifest; every blob of it was fetched and hashed.
        """
        chance = random.Random(seed)  # noqa: S311 (no secret)
        waiting, done, lock = list(names), dict[str, str](), threading.Lock()
        chance.shuffle(waiting)
        failures: list[BaseException] = []
        stopped = threading.Event()

        def work() -> None:
            try:
                while True:
                    with lock:
                        if not waiting:
                            return
                        last = len(waiting) == 1
                        name = waiting.pop()
                    while last and not stopped.is_set() and sum(member.kills for member in self.members) < LEAST_KILLS:
                        time.sleep(0.05)
                    digest = self._pull(name)
                    with lock:
                        done[name] = digest
            except BaseException as error:  # noqa: BLE001 (raised below)
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(chance.uniform(*every))
            victim = chance.choice(self.members)
            if victim.process is not None and victim.process.poll() is not None:
                stopped.set()
                raise AssertionError(f"a replica has ended by itself: {victim.log.read_text()[-2000:]}")
            if _answers(victim.url):
                victim.kill()
                victim.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return done

    def _pull(self, name: str) -> str:
        body = self._get(f"/v2/{name}/manifests/latest")
        manifest = json.loads(body)
        for descriptor in (manifest["config"], *manifest["layers"]):
            blob = self._get(f"/v2/{name}/blobs/{descriptor['digest']}")
            found = "sha256:" + hashlib.sha256(blob).hexdigest()
            if (found, len(blob)) != (descriptor["digest"], descriptor["size"]):
                raise AssertionError(f"{name}: a blob of {len(blob)} bytes is {found}, not {descriptor}")
        return "sha256:" + hashlib.sha256(body).hexdigest()

    def _get(self, path: str, patience: float = 120.0) -> bytes:
        """Ask one replica after the other, as a client behind a load balancer does."""
        deadline, turn = time.monotonic() + patience, 0
        while True:
            member = self.members[turn % len(self.members)]
            turn += 1
            try:
                with urllib.request.urlopen(member.url + path, timeout=30) as answer:  # noqa: S310 (our own address)
                    body: bytes = answer.read()
                    if int(answer.headers["content-length"]) == len(body):
                        return body
                    reason = "it broke off"
            except urllib.error.HTTPError as error:
                if error.code < 429 and error.code != 404:
                    raise
                reason = f"{error.code}: {error.read()[:300]!r}"
            except (OSError, ValueError) as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 (http.client has no common base)
                reason = repr(error)
            if time.monotonic() > deadline:
                raise AssertionError(f"{path} cannot be had: {reason}")
            time.sleep(0.1)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return as soon as *condition* holds; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it takes longer than {seconds} s")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5):  # noqa: S310 (our own address)
            return True
    except (OSError, ValueError):
        return False

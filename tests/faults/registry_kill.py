"""Two registries on one storage, killed at random while clients pull: nothing may be lost.

Clients ask one of the two for each image until they have all of it, and check every byte.  Now and
then a registry gets SIGKILL, and a new one takes its place.  At the end every image is there, by
its name and whole; nobody holds a lease for longer than its ttl; and the storage passes its own
check.

Run it: python registry_kill.py [--images 50] [--kills 25] [--store DIRECTORY] [--options JSON]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import attrs

from nixery_core import open_backend
from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Manifest
from nixery_core.storage.blobs import blob_exists, read_blob
from nixery_core.storage.keys import LEASES
from nixery_core.storage.layout import list_refs

SERVER = Path(__file__).with_name("registry_server.py")
_BROKEN = (OSError, http.client.HTTPException, ValueError)


@attrs.define
class Outcome:
    """What happened."""

    images: int
    kills: int = 0
    builds: Counter[str] = attrs.field(factory=Counter)
    """How often the packages of each image were looked up for a build, in either registry."""
    broken: int = 0
    """Requests that ended with a broken connection, or part of an answer."""
    lost: list[str] = attrs.field(factory=list)
    """Everything that should be there and is not."""

    def describe(self) -> str:
        """Return one line for a person."""
        again = sum(count - 1 for count in self.builds.values())
        return (
            f"{self.images} images, {self.kills} kills, {self.broken} broken requests, "
            f"{again} builds begun again, {len(self.lost)} lost"
        )


class Replica:
    """One of the registries: it is killed, and lives again under the same address."""

    def __init__(self, store: str, options: dict[str, object], images: int, outcome: Outcome) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = [sys.executable, str(SERVER), store, str(self.port), str(images), json.dumps(options)]
        self._outcome = outcome
        self._readers: list[threading.Thread] = []
        self._start()

    def kill(self) -> None:
        """Take it away in the middle of whatever it does, and start another one."""
        self.end()
        self._start()

    def serves(self) -> bool:
        """Return whether it answers: one that is still starting has nothing to lose."""
        with contextlib.suppress(*_BROKEN):
            return fetch(self.port, "/v2/") is not None
        return False

    def end(self) -> None:
        """Take it away."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        reader.start()
        self._readers = [reader]

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._outcome.builds[line.split()[-1]] += 1


def run(store: str, options: dict[str, object], *, images: int, kills: int, seed: int) -> Outcome:
    """Pull *images* images through *kills* kills, then look for what is lost."""
    chance, outcome = random.Random(seed), Outcome(images=images)
    replicas = [Replica(store, options, images, outcome) for _ in range(2)]
    try:
        with ThreadPoolExecutor(8) as pool:
            pulls: list[Future[None]] = []
            while outcome.kills < kills or any(not one.done() for one in pulls):
                if all(one.done() for one in pulls):
                    # all of them, again where the images were quicker than the kills
                    ports = [replica.port for replica in replicas]
                    pulls += [pool.submit(pull, ports, f"p{number}", outcome) for number in range(images)]
                victim = chance.choice(replicas)
                time.sleep(chance.uniform(0.05, 0.6))
                if outcome.kills < kills and victim.serves():
                    victim.kill()
                    outcome.kills += 1
            for one in pulls:
                one.result()
    finally:
        for replica in replicas:
            replica.end()
    outcome.lost = list(missing(store, options, images))
    return outcome


def pull(ports: list[int], name: str, outcome: Outcome) -> None:
    """Pull one image whole, from whichever registry answers."""
    deadline = time.monotonic() + 300
    chance = random.Random(name)
    while time.monotonic() < deadline:
        try:
            manifest = fetch(chance.choice(ports), f"/v2/{name}/manifests/latest")
            if manifest is not None:
                document = json.loads(manifest)
                blobs = [document["config"], *document["layers"]]
                if all(fetch_blob(chance.choice(ports), name, blob["digest"]) for blob in blobs):
                    return
        except _BROKEN:
            outcome.broken += 1
        time.sleep(0.1)
    raise TimeoutError(f"{name} could not be pulled")


def fetch(port: int, path: str) -> bytes | None:
    """Return what a registry answers with 200, or None for any other status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status == 307:
            # the storage itself has it
            with urllib.request.urlopen(response.headers["location"], timeout=30) as direct:
                data: bytes = direct.read()
                return data
        if response.status >= 500:
            raise AssertionError(f"{path}: {response.status} {body!r}")
        return body if response.status == 200 else None


def fetch_blob(port: int, name: str, digest: str) -> bool:
    """Return whether a blob is there; raises AssertionError if it is another one."""
    body = fetch(port, f"/v2/{name}/blobs/{digest}")
    if body is None:
        return False
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest, f"{digest} has other bytes"
    return True


def missing(store: str, options: dict[str, object], images: int) -> Iterator[str]:
    """Give everything that is not as it has to be."""
    backend = open_backend(store, **options)
    names = {name: descriptor for name, _, descriptor in list_refs(backend)}
    for number in range(images):
        name = f"p{number}"
        if name not in names:
            yield f"the name {name}"
            continue
        try:
            manifest = Manifest.from_bytes(read_blob(backend, names[name]))
        except ObjectNotFound as error:
            yield f"{name}: {error}"
            continue
        for blob in (manifest.config, *manifest.layers):
            data = b"".join(backend.stream(f"blobs/sha256/{blob.digest.hex}")) if blob_exists(backend, blob) else b""
            if Digest.of(data) != blob.digest:
                yield f"{name}: the blob {blob.digest}"
    for info in backend.list(LEASES):
        content = json.loads(backend.get(info.key))
        if set(content) != {"holder", "beats"}:
            yield f"{info.key} is {content}"


def main() -> int:
    """Run once, print what happened, and return 1 if anything is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store")
    parser.add_argument("--options", type=json.loads, default={})
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or f"{folder}/images"
        outcome = run(store, arguments.options, images=arguments.images, kills=arguments.kills, seed=arguments.seed)
    print(outcome.describe())
    for one in outcome.lost:
        print("lost:", one)
    return 1 if outcome.lost else 0


if __name__ == "__main__":
    sys.exit(main())

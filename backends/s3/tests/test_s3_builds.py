"""Builds into a bucket: what they tell of requests that are sent again, and what they ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nixery_backend_s3._store as store_module
import pytest
from nixery_backend_s3 import open_backend

from nixery_core import ImageSpec
from nixery_core.demo.cache import write_demo_cache
from nixery_core.errors import Cancelled
from nixery_core.events import BuildEvent, StorageRetried
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.memory_images import memory_builder

_BODY = b"<Error><Code>SlowDown</Code><Message>not so fast</Message></Error>"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)


def test_small_requests_of_a_build_are_told(moto) -> None:
    """The first thing that a build asks for is the manifest cache: that it waits for it is an event of the build."""
    events: list[BuildEvent] = []
    with FaultyProxy(moto.port) as proxy:
        backend = open_backend(f"s3://{moto.new_bucket()}", **moto.at(proxy.port))
        builder = memory_builder(backend, "git")
        proxy.reply(BUSY, times=2)
        image = builder.build(ImageSpec.parse("git"), on_event=events.append)
        told = [event for event in events if isinstance(event, StorageRetried)]
        assert [(event.operation, event.attempt) for event in told] == [("get", 1), ("get", 2)]
        assert all(event.key.startswith("cache/manifests/") for event in told)
        assert proxy.faults == 2
        # and the last is the name of an image that is stored
        events.clear()
        proxy.reply(BUSY, times=1)
        assert builder.find(ImageSpec.parse("git"), on_event=events.append).descriptor == image.descriptor
        assert len([event for event in events if isinstance(event, StorageRetried)]) == 1


def test_who_follows_a_build_may_end_it(moto) -> None:
    """A callback that has enough of a busy server ends the build with its own error, not with one of the storage."""

    def impatient(event: BuildEvent) -> None:
        if isinstance(event, StorageRetried):
            raise Cancelled("enough")

    with FaultyProxy(moto.port) as proxy:
        backend = open_backend(f"s3://{moto.new_bucket()}", **moto.at(proxy.port))
        proxy.reply(BUSY, times=1)
        with pytest.raises(Cancelled, match="enough"):
            memory_builder(backend, "git").build(ImageSpec.parse("git"), on_event=impatient)


def test_who_follows_a_build_costs_no_request(moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one build has learnt of the server the next one knows: that the bucket is there, and what it obeys."""
    backend = open_backend(f"s3://{moto.new_bucket()}", **moto.options)
    builder = memory_builder(backend, "git", "hello")
    first = builder._work.telling(lambda event: None).backend
    assert first.creates_atomically()
    assert first.stat("index.json") is None
    request = store_module.Connection.request
    asked: Counter[str] = Counter()
    sent_by: set[int] = set()

    def count(self, operation, bucket, parameters):
        asked[operation] += 1
        sent_by.add(id(self))
        return request(self, operation, bucket, parameters)

    monkeypatch.setattr(store_module.Connection, "request", count)
    for name in ("git", "hello"):
        builder.find(ImageSpec.parse(name), on_event=lambda event: None)
        heard = builder._work.telling(lambda event: None)
        assert heard.backend.create(f"cache/layers/{name}", b"x")
        assert heard.layer_cache.backend.stat("refs/nothing") is None
    assert asked["head_bucket"] == 0
    # only what was asked for is looked at: nothing before an object is created
    assert asked["head_object"] == 2
    assert sent_by == {id(backend._store._connection)}


def test_the_command_shows_them(moto, tmp_path: Path) -> None:
    """``nixery-core build --progress plain`` has a line for each pause, also of small requests."""
    cache = write_demo_cache(tmp_path / "cache")
    with FaultyProxy(moto.port) as proxy:
        proxy.reply(BUSY, times=1)
        command = [sys.executable, "-m", "nixery_core", "build", "hello", "--progress", "plain"]
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": moto.key,
            "AWS_SECRET_ACCESS_KEY": moto.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        }
        built = subprocess.run(
            [*command, "--source", f"cache:{cache.folder}#{cache.index}", "--store", f"s3://{moto.new_bucket()}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
        )
    assert built.returncode == 0, built.stderr
    (line,) = [line for line in built.stderr.splitlines() if line.startswith("storage: ")]
    assert "storage: get cache/manifests/" in line
    assert "SlowDown" in line

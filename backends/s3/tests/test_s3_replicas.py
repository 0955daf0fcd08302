"""Two registries on one bucket, which are killed while clients pull."""

from __future__ import annotations

import json

from nixery_core import open_backend
from nixery_core.keeping.fsck import fsck
from nixery_core.storage.layout import list_refs
from nixery_core.testing.replicas import LEAST_KILLS, Replicas, write_packages

OPTIONS = ("--allow-unsigned", "--lease-ttl", "2", "--patience", "5", "--log-level", "warning", "--no-page")


def test_nothing_is_lost_when_replicas_are_killed(moto, tmp_path):
    """50 images are pulled whole from two replicas that are killed at random, and the bucket is sound after it."""
    names = [f"p{number}" for number in range(50)]
    store = f"s3://{moto.new_bucket()}/images"
    source = write_packages(tmp_path / "cache", 50, size=50_000)
    # blobs from the replicas, so that theirs is every byte that is checked
    options = [*OPTIONS, "--redirect-expires", "0"]
    environment = {"NIXERY_STORE_OPTIONS": json.dumps(moto.options)}
    with Replicas(source, store, tmp_path, options=options, environment=environment) as replicas:
        pulled = replicas.pull_while_killing(names, every=(1.0, 4.0))
        assert sum(member.kills for member in replicas.members) >= LEAST_KILLS
        replicas.wait()
        assert [member.stop() for member in replicas.members] == [0, 0]
    assert pulled.keys() == set(names)
    backend = open_backend(store, **moto.options)
    assert {name: str(found.digest) for name, _, found in list_refs(backend)} == pulled
    report = fsck(backend, grace=0.0)
    assert not report.broken, report

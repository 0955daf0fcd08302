"""Several registries on one folder, some of which die."""

from __future__ import annotations

from nixery_core.keeping.fsck import fsck
from nixery_core.storage.layout import list_refs
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.replicas import LEAST_KILLS, Replicas, write_packages

OPTIONS = ("--allow-unsigned", "--lease-ttl", "2", "--patience", "5", "--log-level", "warning", "--no-page")


def test_nothing_is_lost_when_replicas_are_killed(tmp_path):
    """50 images are pulled whole from two replicas that are killed at random, and the storage is sound after it."""
    names = [f"p{number}" for number in range(50)]
    store = str(tmp_path / "images")
    with Replicas(write_packages(tmp_path / "cache", 50), store, tmp_path, options=OPTIONS) as replicas:
        pulled = replicas.pull_while_killing(names)
        assert sum(member.kills for member in replicas.members) >= LEAST_KILLS
        replicas.wait()
        assert [member.stop() for member in replicas.members] == [0, 0]
    assert pulled.keys() == set(names)
    backend = open_backend(store)
    assert {name: str(found.digest) for name, _, found in list_refs(backend)} == pulled
    report = fsck(backend, grace=0.0)
    assert not report.broken, report

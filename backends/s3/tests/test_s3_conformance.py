"""S3 keeps the promises of the storage contract, on two servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing import BackendTests
from nixery_core.testing.faulty_proxy import FaultyProxy


def behind_a_proxy(server, large_blobs: str) -> Iterator[tuple[Backend, FaultyProxy]]:
    with FaultyProxy(server.port) as proxy:
        # few repetitions, so that the tests are quick
        yield (
            open_backend(f"s3://{server.new_bucket()}/x", **server.at(proxy.port), retries=2, large_blobs=large_blobs),
            proxy,
        )


class TestMoto(BackendTests):
    # large blobs go through staging here, and with rclone they wait on this machine
    large = 17 << 20
    examples = 4

    @pytest.fixture
    def backend(self, moto) -> Backend:
        """Return an empty storage under a prefix."""
        return open_backend(f"s3://{moto.new_bucket()}/some/prefix", **moto.options, large_blobs="stage")

    @pytest.fixture
    def proxied(self, moto) -> Iterator[tuple[Backend, FaultyProxy]]:
        """Return an empty storage behind a proxy."""
        yield from behind_a_proxy(moto, "stage")


class TestRclone(BackendTests):
    large = (8 << 20) + 12345
    examples = 4

    @pytest.fixture
    def backend(self, rclone) -> Backend:
        """Return an empty storage at the root of a bucket."""
        return open_backend(f"s3://{rclone.new_bucket()}", **rclone.options)

    @pytest.fixture
    def proxied(self, rclone) -> Iterator[tuple[Backend, FaultyProxy]]:
        """Return an empty storage behind a proxy."""
        yield from behind_a_proxy(rclone, "auto")

    # Not asked of rclone 1.75: to read an object while it is replaced.  About one of 200 answers has the length
    # of the old object and the bytes of the new one, to any client and in each of its cache modes.
    test_readers_see_old_or_new_never_a_mix = None

    def test_delete(self, backend: Backend) -> None:
        """Deleting removes one object; what is not there is deleted already.

        Not asked of rclone 1.75: to delete ``a/below`` where ``a`` is an object.  It removes ``a``.
        """
        backend.create("cache/layers/a", b"x")
        backend.create("cache/layers/b", b"x")
        for _ in range(2):
            backend.delete("cache/layers/a")
        backend.delete("nowhere/at/all")
        assert [info.key for info in backend.list("")] == ["cache/layers/b"]

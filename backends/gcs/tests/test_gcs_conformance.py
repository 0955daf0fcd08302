"""GCS keeps the promises of the storage contract, on the emulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing import BackendTests
from nixery_core.testing.faulty_proxy import FaultyProxy


class TestEmulator(BackendTests):
    large = (8 << 20) + 12345
    examples = 4

    @pytest.fixture
    def backend(self, emulator) -> Backend:
        """Return an empty storage under a prefix."""
        return open_backend(f"gs://{emulator.new_bucket()}/some/prefix", **emulator.options)

    @pytest.fixture
    def proxied(self, emulator) -> Iterator[tuple[Backend, FaultyProxy]]:
        """Return an empty storage behind a proxy."""
        with FaultyProxy(emulator.port) as proxy:
            # few repetitions, so that the tests are quick
            yield open_backend(f"gs://{emulator.new_bucket()}/x", **emulator.at(proxy.port), retries=2), proxy

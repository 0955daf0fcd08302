"""Small objects: created once or replaced, listed, deleted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from nixery_core.storage.backend import Backend
from nixery_core.testing._suite.base import SuiteBase, at_once, size_of


class ObjectTests(SuiteBase):
    """Writers of small objects, alone and many at once."""

    def test_create_only_creates(self, backend: Backend) -> None:
        """The first content stays, and the second caller is told."""
        assert backend.create("cache/layers/k", b"first", content_type="application/json") is True
        assert backend.create("cache/layers/k", b"second") is False
        assert backend.get("cache/layers/k") == b"first"

    def test_create_of_an_empty_object(self, backend: Backend) -> None:
        """An object without a byte exists."""
        assert backend.create("cache/layers/empty", b"") is True
        assert backend.create("cache/layers/empty", b"x") is False
        assert backend.get("cache/layers/empty") == b""

    def test_one_of_many_creates(self, backend: Backend) -> None:
        """Of many callers at once exactly one creates, and its content is what all read."""
        for attempt in range(10):
            key = f"cache/manifests/race{attempt}"

            def create(number: int, key: str = key) -> bytes | None:
                data = b"%d" % number * 1000
                return data if backend.create(key, data) else None

            winners = [data for data in at_once(8, create) if data is not None]
            assert [backend.get(key)] == winners

    def test_replace_replaces(self, backend: Backend) -> None:
        """The last content stays, shorter or longer."""
        for data in (b"one", b"a much longer content", b""):
            backend.replace("index.json", data, content_type="application/json")
            assert backend.get("index.json") == data
        assert size_of(backend, "index.json") == 0

    def test_readers_see_old_or_new_never_a_mix(self, backend: Backend) -> None:
        """Replacing is atomic for those who read meanwhile."""
        contents = [bytes([65 + number]) * (20_000 + 1000 * number) for number in range(4)]
        backend.replace("index.json", contents[0])
        done = threading.Event()
        torn: list[bytes] = []

        def read() -> None:
            while not done.is_set():
                data = backend.get("index.json")
                if data not in contents:
                    torn.append(data)

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(3)]
            try:
                for number in range(40):
                    backend.replace("index.json", contents[number % 4])
            finally:
                done.set()
            for reader in readers:
                reader.result()
        assert torn == []

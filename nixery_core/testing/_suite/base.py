"""What the parts of the suite share."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import pytest

from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import SupportsUploads
from nixery_core.storage.keys import STAGING

_T = TypeVar("_T")


class SuiteBase:
    """An empty storage for each test, in which nothing may be left on its way."""

    large = 9 << 20
    """Size of the large blob, bytes: more than a backend sends at once.  Subclasses may ask for more."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Return a backend over an empty storage."""
        raise NotImplementedError("define a fixture `backend` that returns your backend over an empty storage")

    @pytest.fixture(autouse=True)
    def _nothing_is_left_in_staging(self, backend: Backend) -> Iterator[None]:
        yield
        left = unfinished(backend)
        assert not left, f"left in the storage: {left}"


def unfinished(backend: Backend) -> list[object]:
    """Return what is on its way into the storage: keys in staging, and uploads."""
    left: list[object] = [info.key for info in backend.list(STAGING)]
    if isinstance(backend, SupportsUploads):
        left += backend.list_uploads()
    return left


def size_of(backend: Backend, key: str) -> int | None:
    """Return the size of an object that may not be there."""
    info = backend.stat(key)
    return info.size if info else None


def skip_without(backend: Backend, capability: str) -> NoReturn:
    """Skip the test, for the backend is not able to do what it is about."""
    pytest.skip(f"{type(backend).__name__} has no {capability}")


def at_once(count: int, call: Callable[[int], _T]) -> list[_T]:
    """Return what *count* threads get that make the call in the same moment."""
    barrier = threading.Barrier(count)

    def wait_and_call(number: int) -> _T:
        barrier.wait(timeout=30)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


def noise(size: int) -> bytes:
    """Return *size* bytes of which no two pieces are alike, so pieces in the wrong place are seen."""
    return random.Random(size).randbytes(size)  # noqa: S311 - test data

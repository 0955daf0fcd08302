"""Keys that lead nowhere else, and references that lead back."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from nixery_core.errors import InvalidKey
from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing._suite.base import SuiteBase

BAD_KEYS = ["", "/", "/etc/passwd", "a//b", "a/", "../a", "a/../../b", ".", "a/./b", "a\0b", "a\\b", "a\nb"]
"""Keys that every backend refuses."""


class KeyTests(SuiteBase):
    """Keys, errors, references."""

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys_are_refused(self, backend: Backend, key: str) -> None:
        """No key leads out of the storage, whatever the call."""
        calls: list[Callable[[], object]] = [
            lambda: backend.create(key, b"x"),
            lambda: backend.replace(key, b"x"),
            lambda: backend.get(key),
            lambda: list(backend.stream(key)),
            lambda: backend.stat(key),
            lambda: backend.delete(key),
        ]
        for call in calls:
            with pytest.raises(InvalidKey):
                call()

    @pytest.mark.parametrize("prefix", ["/", "../", "a//", "cache", "a/../"])
    def test_bad_prefixes_are_refused(self, backend: Backend, prefix: str) -> None:
        """A prefix is empty or ends at a component."""
        with pytest.raises(InvalidKey):
            list(backend.list(prefix))

    def test_reference_opens_the_same_storage(self, backend: Backend) -> None:
        """What is left of a backend after pickling finds the same objects."""
        backend.create("cache/layers/k", b"here")
        ref = pickle.loads(pickle.dumps(backend.ref))  # noqa: S301 - our own bytes
        again = open_backend(ref.url, **ref.options)
        assert again.get("cache/layers/k") == b"here"
        assert again.create("cache/layers/k", b"there") is False
        assert again.ref == backend.ref

    def test_backend_shows_no_secret(self, backend: Backend) -> None:
        """Neither the backend nor its reference prints its options."""
        for value in backend.ref.options.values():
            if isinstance(value, str) and value:
                assert value not in repr(backend.ref)
                assert value not in repr(backend)

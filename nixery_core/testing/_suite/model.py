"""A storage is a dictionary: what any sequence of calls must leave."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import STAGING, blob_key
from nixery_core.testing._suite.base import SuiteBase

# no key is the folder of another one: file systems cannot have that, and the library makes no such keys
KEYS = ["index.json", "refs/a/_tags/v", "refs/a-b/_tags/v", "refs/a/b/_tags/v", "cache/layers/k", "cache/layers/l"]
_keys = st.sampled_from(KEYS)
_contents = st.binary(max_size=50)


class StorageIsADictionary(RuleBasedStateMachine):
    """Calls a backend and a dictionary, and compares; begins with an empty storage."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.model: dict[str, bytes] = {}
        for info in list(backend.list("")):
            backend.delete(info.key)

    @rule(key=_keys, data=_contents)
    def create(self, key: str, data: bytes) -> None:
        """Only what is not there is created."""
        assert self.backend.create(key, data) is (key not in self.model)
        self.model.setdefault(key, data)

    @rule(key=_keys, data=_contents)
    def replace(self, key: str, data: bytes) -> None:
        """The last content stays."""
        self.backend.replace(key, data)
        self.model[key] = data

    @rule(key=_keys)
    def delete(self, key: str) -> None:
        """What is deleted is gone, and nothing else."""
        self.backend.delete(key)
        self.model.pop(key, None)

    @rule(pieces=st.lists(_contents, max_size=3), fate=st.sampled_from(["commit", "cancel", "drop"]))
    def blob(self, pieces: list[bytes], fate: str) -> None:
        """A blob is there after commit, and only then."""
        data = b"".join(pieces)
        writer = self.backend.open_blob()
        for piece in pieces:
            writer.write(piece)
        if fate == "commit":
            writer.commit(Digest.of(data))
            self.model[blob_key(Digest.of(data))] = data
        elif fate == "cancel":
            writer.cancel()

    @rule(key=_keys, start=st.integers(0, 60), end=st.none() | st.integers(0, 60))
    def read(self, key: str, start: int, end: int | None) -> None:
        """Any range of what is there is read, and nothing of what is not."""
        if key in self.model:
            assert self.backend.get(key) == self.model[key]
            assert b"".join(self.backend.stream(key, start, end)) == self.model[key][start:end]
        else:
            assert self.backend.stat(key) is None
            with pytest.raises(ObjectNotFound):
                self.backend.get(key)

    @rule(prefix=st.sampled_from(["", "refs/", "refs/a/", "cache/", "blobs/sha256/", "cache/layers/k/"]))
    def listing(self, prefix: str) -> None:
        """A listing is exact and sorted."""
        expected = sorted((key, len(data)) for key, data in self.model.items() if key.startswith(prefix))
        assert [(info.key, info.size) for info in self.backend.list(prefix)] == expected

    @invariant()
    def nothing_but_the_model(self) -> None:
        """There is nothing that nobody put there."""
        assert [info.key for info in self.backend.list("")] == sorted(self.model)


class ModelTests(SuiteBase):
    """Any sequence of calls, compared with a dictionary."""

    examples = 10
    """How many sequences of up to twenty calls are tried."""

    def test_storage_is_a_dictionary(self, backend: Backend) -> None:
        """Any sequence of calls leaves what it leaves in a dictionary."""
        run_state_machine_as_test(
            # hypothesis calls it for each sequence, whatever its type says
            lambda: StorageIsADictionary(backend),  # type: ignore[arg-type]
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=20,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert list(backend.list(STAGING)) == []

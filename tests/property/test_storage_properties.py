"""A storage is a dictionary: what any sequence of calls must leave."""

import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nixery_core.errors import InvalidKey, ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.model.names import check_name, check_tag
from nixery_core.storage.backend import Backend
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.keys import blob_key, check_key, parse_ref_key, ref_key
from nixery_core.storage.local import LocalBackend

pytestmark = pytest.mark.property

# no key is the folder of another one: file systems cannot have that, and the library makes no such keys
KEYS = ["index.json", "refs/a/_tags/v", "refs/a-b/_tags/v", "refs/a/b/_tags/v", "cache/layers/k", "cache/layers/l"]
keys = st.sampled_from(KEYS)
contents = st.binary(max_size=50)
words = st.text("abz019", min_size=1, max_size=4)
components = st.builds(
    lambda first, rest: first + "".join(rest),
    words,
    st.lists(st.builds(str.__add__, st.sampled_from([".", "_", "__", "-", "---"]), words), max_size=2),
)


class StorageIsADictionary(RuleBasedStateMachine):
    backend: Backend

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}

    @rule(key=keys, data=contents)
    def create(self, key: str, data: bytes) -> None:
        assert self.backend.create(key, data) is (key not in self.model)
        self.model.setdefault(key, data)

    @rule(key=keys, data=contents)
    def replace(self, key: str, data: bytes) -> None:
        self.backend.replace(key, data)
        self.model[key] = data

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.backend.delete(key)
        self.model.pop(key, None)

    @rule(pieces=st.lists(contents, max_size=3), fate=st.sampled_from(["commit", "cancel", "drop"]))
    def blob(self, pieces: list[bytes], fate: str) -> None:
        data = b"".join(pieces)
        writer = self.backend.open_blob()
        for piece in pieces:
            writer.write(piece)
        if fate == "commit":
            writer.commit(Digest.of(data))
            self.model[blob_key(Digest.of(data))] = data
        elif fate == "cancel":
            writer.cancel()

    @rule(key=keys, start=st.integers(0, 60), end=st.none() | st.integers(0, 60))
    def read(self, key: str, start: int, end: int | None) -> None:
        if key in self.model:
            assert self.backend.get(key) == self.model[key]
            assert b"".join(self.backend.stream(key, start, end)) == self.model[key][start:end]
        else:
            assert self.backend.stat(key) is None
            with pytest.raises(ObjectNotFound):
                self.backend.get(key)

    @rule(prefix=st.sampled_from(["", "refs/", "refs/a/", "cache/", "blobs/sha256/", "cache/layers/k/"]))
    def listing(self, prefix: str) -> None:
        expected = sorted((key, len(data)) for key, data in self.model.items() if key.startswith(prefix))
        assert [(info.key, info.size) for info in self.backend.list(prefix)] == expected

    @invariant()
    def nothing_but_the_model(self) -> None:
        assert [info.key for info in self.backend.list("")] == sorted(self.model)


class Directory(StorageIsADictionary):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.backend = LocalBackend(self.root)

    def teardown(self) -> None:
        shutil.rmtree(self.root)


class Memory(StorageIsADictionary):
    def __init__(self) -> None:
        super().__init__()
        self.backend = FsspecBackend(f"memory://{uuid.uuid4()}")


@pytest.mark.parametrize("machine", [Directory, Memory])
def test_storage_is_a_dictionary(machine: type[StorageIsADictionary]) -> None:
    """Any sequence of calls leaves what it leaves in a dictionary, in a directory as in memory."""
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))


@given(st.lists(components, min_size=1, max_size=4).map("/".join), st.text("aZ09_.-", min_size=1, max_size=9))
def test_every_name_and_tag_has_a_key(name: str, tag: str) -> None:
    """Each image name and tag has a key of its own, from which it is read back."""
    tag = check_tag("t" + tag)
    assert parse_ref_key(ref_key(check_name(name), tag)) == (name, tag)


@given(st.text("ab./\\\0\n ", max_size=8))
def test_no_key_leads_out(text: str) -> None:
    """What passes for a key names one file inside the storage, and is the only key of that file."""
    root = Path("/storage")
    try:
        check_key(text)
    except InvalidKey:
        return
    path = Path("/storage/" + text)
    assert path.is_relative_to(root)
    assert path != root
    assert str(path.relative_to(root)) == text
    assert ".." not in path.parts

"""Storage keys: where things are, and what can never be a key."""

import uuid

import pytest

from nixery_core.errors import InvalidKey
from nixery_core.model.digest import Digest
from nixery_core.storage.keys import (
    blob_key,
    check_key,
    check_prefix,
    layer_cache_key,
    manifest_cache_key,
    parse_ref_key,
    ref_key,
    staging_key,
)
from nixery_core.testing.backend import BAD_KEYS


def test_places() -> None:
    """The storage is an OCI image layout with caches beside it."""
    assert blob_key(Digest.of(b"")) == f"blobs/sha256/{Digest.of(b'').hex}"
    assert blob_key(Digest("sha512", "0" * 128)) == f"blobs/sha512/{'0' * 128}"
    assert layer_cache_key("k") == "cache/layers/k"
    assert manifest_cache_key("k") == "cache/manifests/k"
    assert ref_key("a/b", "v1") == "refs/a/b/_tags/v1"


def test_staging_keys_are_new() -> None:
    """No two writers share a staging key: not in this process, not in another."""
    keys = {staging_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert uuid.UUID(key.removeprefix("staging/")).version == 4


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys(key: str) -> None:
    """What could leave the storage, or be one object under two keys, is refused with the key."""
    with pytest.raises(InvalidKey) as raised:
        check_key(key)
    assert raised.value.key == key


@pytest.mark.parametrize("part", ["", "a/b", "..", ".", "a\\b", "a\0", "a\nb"])
def test_parts_stay_parts(part: str) -> None:
    """A cache key or a tag cannot reach into another place."""
    for make in (layer_cache_key, manifest_cache_key, lambda tag: ref_key("name", tag)):
        with pytest.raises(InvalidKey):
            make(part)


@pytest.mark.parametrize(
    ("name", "tag"), [("../x", "v"), ("", "v"), ("a//b", "v"), ("a/_tags/b", "v"), ("a/_tags", "v")]
)
def test_names_that_make_no_key(name: str, tag: str) -> None:
    """A name that would be read back differently is refused."""
    with pytest.raises(InvalidKey):
        ref_key(name, tag)


@pytest.mark.parametrize(
    "key", ["refs/a", "refs/_tags/v", "refs/a/_tags/", "refs/a/_tags/b/c", "blobs/a/_tags/v", "xrefs/a/_tags/v", ""]
)
def test_other_keys_are_no_refs(key: str) -> None:
    """What is no ref is not taken for one."""
    assert parse_ref_key(key) is None


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/"])
def test_prefixes(prefix: str) -> None:
    """A prefix is empty or ends at a component."""
    assert check_prefix(prefix) == prefix

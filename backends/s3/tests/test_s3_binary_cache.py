"""Binary caches in buckets, read through s3fs."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest

from nixery_core.errors import BinaryCacheError, InvalidConfig
from nixery_core.model.digest import nix_base32
from nixery_core.model.storepath import StorePath
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.testing.binary_cache import SigningKey, write_cache
from nixery_core.testing.memory_store import MemoryStore

KEY = SigningKey("bucket-1", b"k" * 32)
PATHS = [StorePath(nix_base32(number.to_bytes(20, "little")), f"package-{number}") for number in range(60)]
ABSENT = StorePath("z" * 32, "absent")
STORE = MemoryStore({path: {"file": path.base.encode() * 100} for path in PATHS})


@pytest.fixture
def cache(server, tmp_path: Path) -> BinaryCache:
    """A signed cache of sixty paths in a chain, below a folder of a bucket."""
    references = {path: [other] for path, other in itertools.pairwise(PATHS)}
    write_cache(tmp_path / "cache", STORE, references=references, keys=[KEY], compression="zstd", listings=True)
    bucket = server.new_bucket()
    server.fs().put(str(tmp_path / "cache"), f"{bucket}/some/cache", recursive=True)
    return BinaryCache(f"s3://{bucket}/some/cache", str(KEY.public), options=server.options, connections=8)


def test_a_closure_and_its_content(cache: BinaryCache) -> None:
    """Narinfos, listings and archives come out of a bucket, for a copy by pickle too."""
    copy: BinaryCache = pickle.loads(pickle.dumps(cache))
    assert len(cached_closure(copy, PATHS[:40])) == len(PATHS)
    reader = BinaryCacheReader(copy)
    for path in PATHS[:3]:
        assert list(reader.listing(path)) == list(STORE.listing(path))
        contents = [entry.read() for entry in reader.entries(path) if entry.size]
        assert contents == [path.base.encode() * 100]


def test_many_at_once(cache: BinaryCache) -> None:
    """Every path gets its answer in one call of s3fs, those that are not there too."""
    found = dict(cache.narinfos([*PATHS, ABSENT]))
    assert {path for path, info in found.items() if info is None} == {ABSENT}
    assert len(found) == len(PATHS) + 1
    assert (cache.narinfo(ABSENT), cache.file("nothing.ls")) == (None, None)


def test_what_is_wrong_is_told(cache: BinaryCache, server) -> None:
    """A bucket that is not there, a wrong password and an unknown option are our own errors, with the address."""
    with pytest.raises(BinaryCacheError, match="s3://no-such-bucket-at-all"):
        BinaryCache("s3://no-such-bucket-at-all/x", options=server.options).info()
    info = cache.narinfo(PATHS[0])
    assert info is not None
    server.fs().rm(f"{cache.url.removeprefix('s3://')}/{info.url}")
    with pytest.raises(BinaryCacheError, match=info.url):
        list(cache.archive(info))
    options: dict[str, Any] = {**server.options, "no_such_option": 1}
    with pytest.raises((InvalidConfig, BinaryCacheError)):
        BinaryCache(cache.url, options=options).info()


def test_a_wrong_password(rclone, tmp_path: Path) -> None:
    """Where signatures of requests are checked, a wrong secret is an error, not an empty cache."""
    bucket = rclone.new_bucket()
    options = {**rclone.options, "secret": "wrong"}
    with pytest.raises(BinaryCacheError, match=f"s3://{bucket}"):
        BinaryCache(f"s3://{bucket}", options=options).info()

"""What is there is read whole or in part, and what is not there is not found."""

from __future__ import annotations

import pytest

from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import blob_key
from nixery_core.testing._suite.base import SuiteBase, noise, size_of


class ReadingTests(SuiteBase):
    """Readers, listings, and deletion."""

    def test_ranges(self, backend: Backend) -> None:
        """A stream gives the bytes from start to before end, clipped to the object."""
        data = bytes(range(256)) * 40
        backend.create("cache/layers/k", data)
        size = len(data)
        for start, end in [(0, None), (0, 0), (5, 5), (7, 3), (1, 2), (100, size), (100, size + 9), (size, None)]:
            assert b"".join(backend.stream("cache/layers/k", start, end)) == data[start:end], (start, end)
        assert b"".join(backend.stream("cache/layers/k", size + 5)) == b""

    def test_range_of_a_large_blob(self, backend: Backend) -> None:
        """A range may begin and end anywhere in a blob of many pieces."""
        data = noise(self.large)
        put_blob(backend, data, media_type="text/plain")
        start, end = 1_000_001, self.large - 77
        assert b"".join(backend.stream(blob_key(Digest.of(data)), start, end)) == data[start:end]

    def test_streams_do_not_share_a_position(self, backend: Backend) -> None:
        """Two readers of one object do not disturb each other."""
        data = noise(self.large)
        key = blob_key(put_blob(backend, data, media_type="text/plain").digest)
        first, second = backend.stream(key), backend.stream(key)
        begin = next(first)
        assert b"".join(second) == data
        assert begin + b"".join(first) == data

    def test_stream_may_be_left_early(self, backend: Backend) -> None:
        """A reader that stops leaves nothing open."""
        key = blob_key(put_blob(backend, noise(self.large), media_type="text/plain").digest)
        stream = backend.stream(key)
        next(stream)
        del stream
        backend.delete(key)
        assert backend.stat(key) is None

    def test_what_is_not_there(self, backend: Backend) -> None:
        """A missing object raises where it is read, and is None where it is looked up."""
        backend.create("cache/layers/k", b"x")
        for key in ("cache/layers/none", "cache/layers/k/below", "cache/layers", "nowhere/at/all"):
            assert backend.stat(key) is None
            with pytest.raises(ObjectNotFound) as raised:
                backend.get(key)
            assert raised.value.key == key
            with pytest.raises(ObjectNotFound):
                next(backend.stream(key))

    def test_stat(self, backend: Backend) -> None:
        """A look-up tells the key and the size."""
        backend.create("refs/a/_tags/latest", b"12345")
        info = backend.stat("refs/a/_tags/latest")
        assert info is not None
        assert (info.key, info.size) == ("refs/a/_tags/latest", 5)

    def test_new_objects_are_seenat_once(self, backend: Backend) -> None:
        """Nothing that was looked up before hides what was written since."""
        assert backend.stat("cache/layers/new") is None
        assert list(backend.list("cache/")) == []
        backend.create("cache/layers/new", b"x")
        assert size_of(backend, "cache/layers/new") == 1
        assert [info.key for info in backend.list("cache/")] == ["cache/layers/new"]
        backend.delete("cache/layers/new")
        assert backend.stat("cache/layers/new") is None
        assert list(backend.list("cache/")) == []

    def test_list_is_sorted_and_exact(self, backend: Backend) -> None:
        """A listing gives each key under its prefix once, in the order of the keys, with sizes."""
        keys = ["refs/a/_tags/v1", "refs/a/b/_tags/v1", "refs/a-b/_tags/v1", "refs/a.b/_tags/v1", "refs/a/_tags/v10"]
        others = ["refsx/a", "index.json", "cache/layers/k"]
        for number, key in enumerate(keys + others):
            backend.create(key, bytes(number))
        assert [(info.key, info.size) for info in backend.list("refs/")] == sorted(zip(keys, range(5), strict=True))
        assert [info.key for info in backend.list("")] == sorted(keys + others)
        assert [info.key for info in backend.list("refs/a/")] == sorted(
            key for key in keys if key.startswith("refs/a/")
        )
        assert list(backend.list("nothing/here/")) == []

    def test_list_of_a_key_is_empty(self, backend: Backend) -> None:
        """A key is not under itself."""
        backend.create("cache/layers/k", b"x")
        assert list(backend.list("cache/layers/k/")) == []

    def test_delete(self, backend: Backend) -> None:
        """Deleting removes one object; what is not there is deleted already."""
        backend.create("cache/layers/a", b"x")
        backend.create("cache/layers/b", b"x")
        backend.delete("cache/layers/a")
        backend.delete("cache/layers/a")
        backend.delete("nowhere/at/all")
        backend.delete("cache/layers/b/below")
        assert [info.key for info in backend.list("")] == ["cache/layers/b"]
        assert backend.create("cache/layers/a", b"y") is True

"""What must hold for the layer of any store paths."""

import gzip
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_core.archive import store_entries
from nixery_core.compression import Codec, FastGzipCodec, GzipCodec, NoCodec, ZstdCodec
from nixery_core.compression import codec as codec_by_name
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import BuiltLayer, LayerWriter
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.oci import LAYER_GZIP
from nixery_core.model.storepath import StorePath
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.testing.memory_store import MemoryStore
from nixery_core.testing.strategies import closures, stores

pytestmark = pytest.mark.property

codecs = st.sampled_from([GzipCodec(), GzipCodec(1), FastGzipCodec(), ZstdCodec(), NoCodec()])


@given(stores(), codecs, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_layer_is_a_function_of_its_paths(store: MemoryStore, codec: Codec, chance: random.Random) -> None:
    """The same paths in any order give the same layer; unpacked it hashes to its diff_id, whatever the codec."""
    backend = FsspecBackend(f"memory://{uuid.uuid4()}")
    writer = LayerWriter(backend, codec)
    paths = list(store.trees)
    built = writer.write(store_entries(paths, store), layer_key="k")
    chance.shuffle(paths)
    assert writer.write(store_entries(paths, store), layer_key="k") == built
    archive = b"".join(codec.decompress([read_blob(backend, built.descriptor)]))
    assert (Digest.of(archive), len(archive)) == (built.diff_id, built.uncompressed_size)
    plain = LayerWriter(backend, NoCodec()).write(store_entries(paths, store), layer_key="k")
    assert plain.diff_id == built.diff_id == plain.descriptor.digest
    assert BuiltLayer.from_bytes(built.to_bytes()) == built


@attrs.frozen
class SmallChunks:
    """A codec with chunks so small that every archive has many."""

    inner: Codec
    chunk_bytes: int = 1000

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@given(st.lists(st.binary(max_size=3000), max_size=12), st.sampled_from(["gzip", "gzip-fast", "zstd", "none"]))
@settings(deadline=None)
def test_number_of_workers_does_not_matter(files: list[bytes], name: str) -> None:
    """One thread, two or eight, all layers at once or one by one: equal bytes, whatever the chunks are."""
    store = MemoryStore({StorePath("0" * 32, "x"): {f"{number}": data for number, data in enumerate(files)}})
    codec = SmallChunks(codec_by_name(name))
    backend = FsspecBackend(f"memory://{uuid.uuid4()}")
    alone = LayerWriter(backend, codec).write(store_entries(store.trees, store), layer_key="k")
    for workers in (1, 2, 8):
        with ThreadPoolExecutor(workers) as pool:
            writer = LayerWriter(backend, codec, Helpers(pool, workers))
            futures = [
                pool.submit(writer.write, store_entries(store.trees, store), layer_key="k") for _ in range(workers)
            ]
            assert [future.result() for future in futures] == [alone] * workers
    blob = read_blob(backend, alone.descriptor)
    assert Digest.of(b"".join(codec.decompress([blob]))) == alone.diff_id
    if name.startswith("gzip"):
        assert Digest.of(gzip.decompress(blob)) == alone.diff_id


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=6))
def test_any_cut_of_a_stream_is_read(data: bytes, cuts: list[int]) -> None:
    """However a compressed stream is cut into pieces, it is read back; and Python's gzip reads ours."""
    middle = len(data) // 2
    for codec in (GzipCodec(), FastGzipCodec(), ZstdCodec()):
        stream = codec.compress(data[:middle]) + codec.compress(data[middle:])
        ends = sorted(min(cut, len(stream)) for cut in cuts)
        pieces = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]
        assert b"".join(codec.decompress(pieces)) == data
        if codec.media_type == LAYER_GZIP:
            assert gzip.decompress(stream) == data


@given(closures())
def test_random_closures_are_closures(closure: Closure) -> None:
    """The shipped strategy makes closures in which every path is reached from a root."""
    reached, pending = set(closure.roots), list(closure.roots)
    while pending:
        for reference in closure[pending.pop()].references:
            if reference not in reached:
                reached.add(reference)
                pending.append(reference)
    assert reached == {info.path for info in closure}

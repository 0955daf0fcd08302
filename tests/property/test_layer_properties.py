"""What must hold for the layer of any store paths."""

import gzip
import random
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_core.archive import store_entries
from nixery_core.compression import GzipCodec, NoCodec, ZstdCodec
from nixery_core.layer_writer import BuiltLayer, LayerWriter
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.testing.memory_store import MemoryStore
from nixery_core.testing.strategies import closures, stores

pytestmark = pytest.mark.property

codecs = st.sampled_from([GzipCodec(), GzipCodec(1), ZstdCodec(), NoCodec()])


@given(stores(), codecs, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_layer_is_a_function_of_its_paths(
    store: MemoryStore, codec: GzipCodec | ZstdCodec | NoCodec, chance: random.Random
) -> None:
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


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=6))
def test_any_cut_of_a_stream_is_read(data: bytes, cuts: list[int]) -> None:
    """However a compressed stream is cut into pieces, it is read back; and Python's gzip reads ours."""
    middle = len(data) // 2
    for codec in (GzipCodec(), ZstdCodec()):
        stream = codec.compress(data[:middle]) + codec.compress(data[middle:])
        ends = sorted(min(cut, len(stream)) for cut in cuts)
        pieces = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]
        assert b"".join(codec.decompress(pieces)) == data
        if isinstance(codec, GzipCodec):
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

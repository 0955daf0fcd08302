"""NARs: reading gives what was written, for all trees and all pieces, and never anything but our own errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.stores.nar import nar_entries
from nixery_core.stores.nar_listing import parse_listing
from nixery_core.testing.binary_cache import listing_bytes, nar_bytes
from nixery_core.testing.memory_store import MemoryStore, Tree
from nixery_core.testing.strategies import trees

pytestmark = pytest.mark.property

PATH = StorePath("0" * 32, "x")


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return (data[start:end] for start, end in itertools.pairwise(bounds))


@given(trees(), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_reading_gives_what_was_written(tree: Tree, places: list[int]) -> None:
    """The entries of an archive are those of the tree it was made of, with their contents."""
    data = nar_bytes(tree)
    found = [
        (entry, entry.read()) for entry in nar_entries(cut(data, places), nar_hash=Digest.of(data), nar_size=len(data))
    ]
    expected = [(entry, entry.read()) for entry in MemoryStore({PATH: tree}).entries(PATH)]
    assert found == expected


@given(trees())
def test_a_listing_tells_the_size_of_its_archive(tree: Tree) -> None:
    """Where names and targets are UTF-8, the listing gives the entries, and for one byte more or less it does not."""
    try:
        data = listing_bytes(tree)
    except UnicodeDecodeError:
        return
    size = len(nar_bytes(tree))
    assert parse_listing(data, nar_size=size) == list(MemoryStore({PATH: tree}).listing(PATH))
    assert parse_listing(data, nar_size=size + 8) is None

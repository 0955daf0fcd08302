"""The hash of a NAR, computed from entries: what Nix itself says of the same trees."""

from collections.abc import Iterator

import pytest

from nixery_core.errors import StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.stores.nar_hash import NarHash, verified
from nixery_core.stores.reader import EntryType, StoreEntry
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree

HELLO = StorePath("0" * 32, "hello-1.0")


def nar_hash(tree: Tree) -> str:
    nar = NarHash()
    for entry in MemoryStore({HELLO: tree}).entries(HELLO):
        nar.add(entry).read()
    return nar.finish().to_nix()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (b"", "sha256:0ip26j2h11n1kgkz36rl4akv694yz65hr72q4kv4b3lxcbi65b3p"),
        (b"12345678", "sha256:0g7mwcdnivpkvcv7aydv8b9a4qp0nc3daxhdl95fciv488ik5mi2"),
        (b"hello", "sha256:0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa"),
        (Executable(b"#!/bin/sh\n"), "sha256:0m35wabrvlzjvv71f2xvca3vd91gh9mwvh4mm38h7yb0h9kc30v2"),
        (SymbolicLink("/nix/store"), "sha256:0nnl0qfdgngngjk6qavhbypfss5icxw9dhvx19b36clsvbmm5igg"),
        ({}, "sha256:0sjjj9z1dhilhpc8pq4154czrb79z9cm044jvn75kxcjv6v5l2m5"),
        (
            {"a": {"b": {"c": b"x"}}, "a-b": b"", "d": {}, "e": SymbolicLink("a/b")},
            "sha256:1sa4x3bq823624x6vhrn5542vwdcg1g42m2fr28009k6mm8mclhy",
        ),
        (
            {"bin": {"x": Executable(b"y" * 5000)}, "\u00fc": b"z", "lib": {"l": {}}},
            "sha256:1fzd4c3y3dcagcyvbwcd47yxixqn7yhavaigpqnm9d8a6ar5ng4q",
        ),
    ],
)
def test_hash_is_the_one_of_nix(tree: Tree, expected: str) -> None:
    """Files, programs, links and directories of any shape hash as `nix-hash --type sha256 --base32` says."""
    assert nar_hash(tree) == expected


def test_pieces_and_data_hash_alike() -> None:
    """Whether a reader gives a file at once or in pieces does not matter."""
    for pieces in ([b"hello"], [b"he", b"llo"], [b"", b"hello"]):
        nar = NarHash()
        entry = StoreEntry(name=b"", type=EntryType.REGULAR, size=5, contents=lambda pieces=pieces: iter(pieces))
        assert b"".join(nar.add(entry).contents()) == b"hello"  # type: ignore[misc]
        assert nar.finish().to_nix() == nar_hash(b"hello")
    nar = NarHash()
    nar.add(StoreEntry(name=b"", type=EntryType.REGULAR, size=5, data=b"hello"))
    assert nar.finish().to_nix() == nar_hash(b"hello")


def test_sound_path_passes() -> None:
    """Entries of a path that is what it was registered with are given on unchanged."""
    store = MemoryStore({HELLO: {"bin": {"hello": Executable(b"#!")}, "share": SymbolicLink("bin")}})
    expected = Digest.parse_nix(nar_hash(store.trees[HELLO]))
    entries = []
    for entry in verified(store.entries(HELLO), HELLO, expected):
        entry.read()
        entries.append(entry)
    assert entries == list(store.entries(HELLO))


def test_damaged_path_is_named() -> None:
    """The error names the path and both hashes, and says how to repair it."""
    store = MemoryStore({HELLO: b"text"})
    with pytest.raises(StoreReadError, match=r"hello-1\.0 does not hold .*sha256:") as raised:
        [entry.read() for entry in verified(store.entries(HELLO), HELLO, Digest.of(b""))]
    assert "nix-store --repair-path /nix/store/" in raised.value.hint


def test_reader_is_closed_when_the_consumer_stops() -> None:
    """Nothing stays open behind a walk that is given up."""
    closed = []

    def entries() -> Iterator[StoreEntry]:
        try:
            yield StoreEntry(name=b"", type=EntryType.DIRECTORY)
            yield StoreEntry(name=b"a", type=EntryType.REGULAR, data=b"")
        finally:
            closed.append(True)

    walk = verified(entries(), HELLO, Digest.of(b""))
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert closed == [True]

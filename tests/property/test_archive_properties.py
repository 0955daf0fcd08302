"""What must hold for the archive of any store paths."""

import io
import os
import random
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixery_core.archive import ArchiveEntry, store_entries, write_archive
from nixery_core.model.storepath import StorePath
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.reader import EntryType, StoreReader
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree
from nixery_core.testing.strategies import file_names, stores, trees
from nixery_core.testing.trees import write_store

pytestmark = pytest.mark.property

slow_disk = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def archive(store: MemoryStore, reader: StoreReader | None = None) -> bytes:
    pieces: list[bytes] = []
    size = write_archive(store_entries(store.trees, reader or store), pieces.append)
    data = b"".join(pieces)
    assert size == len(data)
    return data


def members(data: bytes) -> dict[bytes, tuple[str, int, bytes]]:
    """Return the members of a tar archive as Python's tarfile sees them: kind, mode, content or target."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 1)
            content = b""
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                content = file.read()
            kind = "file" if member.isreg() else "directory" if member.isdir() else "link"
            target = os.fsencode(member.linkname) if member.issym() else content
            name = member.name.encode("utf-8", "surrogateescape")
            assert name not in found
            found[name] = (kind, member.mode, target)
    return found


def expected(store: MemoryStore) -> dict[bytes, tuple[str, int, bytes]]:
    result = {b"nix": ("directory", 0o755, b""), b"nix/store": ("directory", 0o755, b"")}
    for path, tree in store.trees.items():
        result |= dict(flat(b"nix/store/" + path.base.encode(), tree))
    return result


def flat(name: bytes, tree: Tree) -> Iterator[tuple[bytes, tuple[str, int, bytes]]]:
    if isinstance(tree, Executable):
        yield name, ("file", 0o555, tree.content)
    elif isinstance(tree, bytes):
        yield name, ("file", 0o444, tree)
    elif isinstance(tree, SymbolicLink):
        yield name, ("link", 0o777, os.fsencode(tree.target))
    else:
        yield name, ("directory", 0o555, b"")
        for child, below in tree.items():
            yield from flat(name + b"/" + os.fsencode(child), below)


@given(stores())
def test_tarfile_reads_back_the_tree(store: MemoryStore) -> None:
    """Names, kinds, modes, contents and targets come back exactly, whatever bytes they are."""
    assert members(archive(store)) == expected(store)


@given(stores())
def test_members_come_in_the_order_of_a_walk(store: MemoryStore) -> None:
    """A directory stands before what it holds, and names of one directory are in byte order."""
    names = list(members(archive(store)))
    assert names == sorted(names, key=lambda name: name.split(b"/"))


@slow_disk
@given(stores(), st.randoms(use_true_random=False))
def test_archive_of_a_directory_is_the_archive_of_memory(store: MemoryStore, chance: random.Random) -> None:
    """The bytes depend on the tree alone: not on the order on disk, inodes, times, modes, links or the umask."""
    with tempfile.TemporaryDirectory() as name:
        shuffled = MemoryStore({path: shuffle(tree, chance) for path, tree in store.trees.items()})
        before = os.umask(chance.choice([0o000, 0o022, 0o077]))
        try:
            write_store(shuffled, Path(name))
        finally:
            os.umask(before)
        for root, directories, files in os.walk(os.fsencode(name)):
            for child in files + directories:
                os.utime(root + b"/" + child, (chance.randrange(1 << 31),) * 2, follow_symlinks=False)
        assert archive(store, DirectoryReader(name)) == archive(store)


def shuffle(tree: Tree, chance: random.Random) -> Tree:
    if not isinstance(tree, Mapping):
        return tree
    children = [(os.fsencode(name), shuffle(child, chance)) for name, child in tree.items()]
    chance.shuffle(children)
    return dict(children)


@given(stores(min_size=2), st.randoms(use_true_random=False))
def test_order_of_the_paths_does_not_matter(store: MemoryStore, chance: random.Random) -> None:
    """The same paths in another order, or named twice, give the same bytes."""
    paths = [*store.trees, *store.trees]
    chance.shuffle(paths)
    pieces: list[bytes] = []
    write_archive(store_entries(paths, store), pieces.append)
    assert b"".join(pieces) == archive(store)


@given(stores(max_size=2))
def test_archive_is_whole_blocks_and_two_of_zeros(store: MemoryStore) -> None:
    """An archive is a whole number of blocks and ends with exactly two blocks of zeros after the last member."""
    data = archive(store)
    assert len(data) % 512 == 0
    assert data[-1024:] == bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    assert len(data) == last.offset_data + (last.size + 511) // 512 * 512 + 1024


@given(
    st.lists(file_names(), min_size=1, max_size=12),
    st.integers(0, 0o7777),
    st.integers(0, 1 << 33),
    st.integers(0, 1 << 33),
)
def test_any_entry_comes_back(parts: list[bytes], mode: int, uid: int, gid: int) -> None:
    """Deep names, special bits and large owners come back exactly."""
    name = b"/".join(parts)
    pieces: list[bytes] = []
    entry = ArchiveEntry(
        name=name, type=EntryType.REGULAR, mode=mode, uid=uid, gid=gid, size=3, contents=lambda: iter([b"abc"])
    )
    write_archive([entry], pieces.append)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces)), encoding="utf-8", errors="surrogateescape") as tar:
        (member,) = tar.getmembers()
        assert member.name.encode("utf-8", "surrogateescape") == name
        assert (member.mode, member.uid, member.gid) == (mode, uid, gid)
        file = tar.extractfile(member)
        assert file is not None
        assert file.read() == b"abc"


@given(trees())
def test_listing_is_the_entries_without_contents(tree: Tree) -> None:
    """A reader lists what it gives."""
    with tempfile.TemporaryDirectory() as name:
        path = StorePath("0" * 32, "x")
        store = MemoryStore({path: tree})
        write_store(store, Path(name))
        reader = DirectoryReader(name)
        listing = list(reader.listing(path))
        assert listing == list(reader.entries(path)) == list(store.listing(path))
        assert all(entry.data is None and entry.contents is None for entry in listing)
        for entry in listing:
            if entry.type is EntryType.REGULAR:
                head = reader.read_head(path, entry.name, 10)
                assert head == store.read_head(path, entry.name, 10)

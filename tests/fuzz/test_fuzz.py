"""Hostile bytes for everything that reads what a binary cache sends, for as long as NIXERY_FUZZ_SECONDS says.

Each target starts from what Nix would write and changes it at random.  The hash of the changed
archive is taken for the promised one: whoever can change an archive is assumed to sign it too.
A failure prints the smallest input that hypothesis finds.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import sys
import time
from collections.abc import Callable

import brotli
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nixery_core.errors import BinaryCacheError, InvalidConfig, InvalidDocument, StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.stores._unpack import PIECE, unpacked
from nixery_core.stores.binary_cache import CacheInfo
from nixery_core.stores.content_address import check_content_address
from nixery_core.stores.nar import nar_entries
from nixery_core.stores.nar_listing import parse_listing
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.reader import EntryType, StoreEntry
from nixery_core.stores.signatures import PublicKey, fingerprint
from nixery_core.testing.binary_cache import listing_bytes, nar_bytes
from nixery_core.testing.memory_store import Executable, SymbolicLink, Tree
from nixery_core.testing.strategies import store_paths, trees

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SECONDS = float(os.environ.get("NIXERY_FUZZ_SECONDS", "30"))
"""For all targets together."""
TARGETS = 5

WORDS = [b"(", b")", b"type", b"regular", b"directory", b"entry", b"name", b"node", b"..", b"a/b", b"\0"]
NUMBERS = [0, 1, 7, 8, 255, 256, 4095, 4096, 1 << 20, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]


def texts(word: bytes) -> bytes:
    return len(word).to_bytes(8, "little") + word + bytes(-len(word) % 8)


@st.composite
def changed(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Give *originals* after a few changes: bits, numbers, words, and ranges that are gone, doubled or moved."""
    data = draw(originals)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        start -= draw(st.booleans()) * (start % 8)
        end = min(len(data), start + draw(st.integers(0, 128)))
        middle = draw(
            st.one_of(
                st.binary(max_size=24),
                st.sampled_from(WORDS).map(texts),
                st.sampled_from(NUMBERS).map(lambda number: number.to_bytes(8, "little")),
                st.just(data[start:end] * 2),
                st.just(data[start:end][::-1]),
                st.just(b""),
            )
        )
        if draw(st.booleans()):
            end = min(len(data), start + len(middle))
        data = data[:start] + middle + data[end:]
    return data


def for_a_while(check: Callable[[], None]) -> None:
    end = time.monotonic() + SECONDS / TARGETS
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        check()
        rounds += 1


fuzzing = settings(
    max_examples=200,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def as_tree(entries: list[tuple[StoreEntry, bytes]]) -> Tree:
    """The tree that an archive was read as."""
    root: dict[bytes, Tree] = {}
    folders: dict[bytes, dict[bytes, Tree]] = {}
    for entry, content in entries:
        node: Tree
        if entry.type is EntryType.DIRECTORY:
            node = folders[entry.name] = {}
        elif entry.type is EntryType.SYMLINK:
            node = SymbolicLink(entry.target)
        else:
            node = Executable(content) if entry.executable else content
        parent, _, base = entry.name.rpartition(b"/")
        (folders[parent] if entry.name else root)[base] = node
    return root[b""]


def test_archives() -> None:
    """What is read as an archive is one: writing its entries gives the same bytes; all else is a StoreReadError."""

    @fuzzing
    @given(changed(trees().map(nar_bytes)), st.integers(1, 5000), st.booleans())
    def check(data: bytes, size: int, content: bool) -> None:
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        try:
            found = [
                (entry, entry.read() if content else b"")
                for entry in nar_entries(pieces, nar_hash=Digest.of(data), nar_size=len(data))
            ]
        except StoreReadError:
            return
        assert found
        if content:
            assert nar_bytes(as_tree(found)) == data

    for_a_while(check)


KEY = PublicKey("k", bytes(32))


def narinfos() -> st.SearchStrategy[bytes]:
    optional = st.none() | st.sampled_from(["fixed:r:sha256:" + "0" * 52, "text:sha256:" + "1" * 52, "fixed:sha1:0"])
    return st.builds(
        NarInfo,
        store_path=store_paths(),
        url=st.just("nar/x.nar.xz"),
        compression=st.sampled_from(["none", "xz", "zstd"]),
        nar_hash=st.binary(max_size=2).map(Digest.of),
        nar_size=st.integers(1, 1 << 62),
        references=st.lists(store_paths(), max_size=3).map(tuple),
        deriver=st.none() | store_paths(),
        signatures=st.lists(st.just("k:" + "A" * 86 + "=="), max_size=2).map(tuple),
        content_address=optional,
    ).map(NarInfo.to_bytes)


def test_narinfos() -> None:
    """What is read as a narinfo is written as one that reads the same; all else is one of our errors."""

    @fuzzing
    @given(changed(narinfos()))
    def check(data: bytes) -> None:
        try:
            info = NarInfo.parse(data)
        except InvalidDocument:
            return
        assert NarInfo.parse(info.to_bytes()) == info
        assert fingerprint(info).startswith(b"1;/nix/store/")
        try:
            check_content_address(info)
        except BinaryCacheError:
            return

    for_a_while(check)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "br": lambda data: brotli.compress(data, quality=1),
}


def test_packed_archives() -> None:
    """Whatever is unpacked comes in bounded pieces, or is a StoreReadError."""
    originals = st.builds(lambda fill, times: fill * times, st.binary(min_size=1, max_size=64), st.integers(0, 5000))

    @fuzzing
    @given(st.data(), st.sampled_from(sorted(PACKERS)), st.integers(1, 5000))
    def check(source: st.DataObject, kind: str, size: int) -> None:
        data = source.draw(changed(originals.map(PACKERS[kind])))
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        with contextlib.suppress(StoreReadError):
            # a forged header may announce gigabytes; nar_entries stops at NarSize, this at some pieces
            for piece in itertools.islice(unpacked(pieces, kind, "it"), 20):
                assert len(piece) <= 3 * PIECE

    for_a_while(check)


def test_listings() -> None:
    """A listing is None or gives entries with names that stay within the store path."""
    named = trees().map(listing_or_nothing).filter(bool)

    @fuzzing
    @given(changed(named), st.integers(0, 5000))
    def check(data: bytes, size: int) -> None:
        found = parse_listing(data, nar_size=size)
        for entry in found or ():
            assert not {b"..", b".", b""} & set(entry.name.split(b"/")) or entry.name == b""

    for_a_while(check)


def listing_or_nothing(tree: Tree) -> bytes:
    try:
        return listing_bytes(tree)
    except UnicodeDecodeError:
        return b""


def test_small_texts() -> None:
    """nix-cache-info and public keys are read, or refused with our own errors."""
    infos = st.just(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
    keys = st.just(b"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")

    @fuzzing
    @given(changed(infos), changed(keys))
    def check(info: bytes, key: bytes) -> None:
        with contextlib.suppress(InvalidDocument):
            CacheInfo.parse(info)
        with contextlib.suppress(InvalidConfig):
            assert not PublicKey.parse(key.decode(errors="replace")).verifies(bytes(64), b"text")

    for_a_while(check)


def test_the_oracle_works() -> None:
    """The comparison of the archive target notices an archive that is not written back as it was."""
    found = [(StoreEntry(name=b"", type=EntryType.REGULAR), b"x")]
    assert nar_bytes(as_tree(found)) == nar_bytes(b"x")
    assert nar_bytes(as_tree(found)) != nar_bytes(Executable(b"x"))

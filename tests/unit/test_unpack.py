"""Packed archives as streams: every kind, in bounded pieces, and nothing but our own errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable, Iterator

import brotli
import pytest

from nixery_core.errors import InvalidConfig, StoreReadError
from nixery_core.stores._unpack import PIECE, unpacked

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstd.compress,
    "br": lambda data: brotli.compress(data, quality=1),
}
DATA = bytes(range(256)) * 2000 + bytes(3 * PIECE)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("kind", PACKERS)
class TestEveryKind:
    @pytest.mark.parametrize("size", [100, 1 << 20])
    def test_what_was_packed_comes_back(self, kind: str, size: int) -> None:
        """Whatever the pieces, the content is the same, and no piece is much larger than a MiB."""
        found = list(unpacked(pieces(PACKERS[kind](DATA), size), kind, "it"))
        assert b"".join(found) == DATA
        assert max(map(len, found)) <= 3 * PIECE

    def test_several_streams_are_one(self, kind: str) -> None:
        """Tools that pack in parallel write streams behind each other; Brotli knows no such thing."""
        packed = PACKERS[kind](b"one") + PACKERS[kind](b"two")
        if kind == "br":
            with pytest.raises(StoreReadError, match=r"it cannot be unpacked \(br\)"):
                list(unpacked([packed], kind, "it"))
        else:
            for size in (1, 1000):
                assert b"".join(unpacked(pieces(packed, size), kind, "it")) == b"onetwo"

    def test_what_is_cut_short(self, kind: str) -> None:
        """Every beginning is refused, the empty one too."""
        packed = PACKERS[kind](b"content" * 20)
        for end in range(len(packed)):
            with pytest.raises(StoreReadError, match=r"it (is cut short|cannot be unpacked)"):
                list(unpacked([packed[:end]], kind, "it"))

    def test_what_is_something_else(self, kind: str) -> None:
        """Other bytes are refused, before and behind."""
        for data in (b"<html>" * 50, PACKERS[kind](b"content") + b"<html>" * 50):
            with pytest.raises(StoreReadError, match="it "):
                list(unpacked([data], kind, "it"))

    def test_the_source_is_closed(self, kind: str) -> None:
        """Whoever stops early lets go of the connection."""
        closed = []

        def source() -> Iterator[bytes]:
            try:
                yield from pieces(PACKERS[kind](DATA), 100)
            finally:
                closed.append(kind)

        stream = unpacked(source(), kind, "it")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert closed == [kind]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brotli is the one kind that needs a package of its own."""
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(InvalidConfig, match="package brotli") as caught:
        list(unpacked([b"x"], "br", "it"))
    assert "nixery-core[cache]" in caught.value.hint

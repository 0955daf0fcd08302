"""How archives in binary caches are packed: unpacked as a stream, in pieces of bounded size whatever comes in."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from nixery_core.errors import InvalidConfig, StoreReadError
from nixery_core.stores._iterators import closing

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 << 20
"""Most bytes that one piece unpacks to, or a little more."""

_GZIP = 16 + 15
# xz -9 needs 65 MiB to unpack; what asks for more is no archive that Nix wrote
_XZ_MEMORY = 256 << 20
_DAMAGES = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class _Unpacker(Protocol):
    """One stream of packed data, as the modules of the standard library read it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def unpacked(pieces: Iterable[bytes], compression: str, where: str) -> Iterator[bytes]:
    """Give what *pieces* unpack to, in pieces of about a MiB at most.

    Args:
        pieces: The packed bytes; closed in the end if they can be.
        compression: As narinfo files name it.
        where: What is unpacked, for errors.

    Raises:
        StoreReadError: The data is damaged, cut short, or packed in a way that is not known here.
        InvalidConfig: The package that unpacks it is not installed.
    """
    if compression == "none":
        return iter(pieces)
    make = _UNPACKERS.get(compression)
    if make is None:
        raise StoreReadError(
            f"{where} is packed with {compression!r}, which is not known here",
            hint=f"copy it to a cache with one of: {', '.join(sorted(_UNPACKERS))}, none",
        )
    return _unpacked(pieces, make, compression, where)


def _unpacked(packed: Iterable[bytes], make: Callable[[], _Unpacker], compression: str, where: str) -> Iterator[bytes]:
    unpacker: _Unpacker | None = make()
    with closing(packed) as pieces:
        for piece in pieces:
            rest = piece
            # several streams behind each other are one, as the tools that pack in parallel write them
            while rest:
                unpacker = make() if unpacker is None else unpacker
                yield from _outcome(unpacker, rest, compression, where)
                rest = unpacker.unused_data if unpacker.eof else b""
                if unpacker.eof:
                    unpacker = None
    if unpacker is not None:
        raise StoreReadError(f"{where} is cut short ({compression})", hint="fetch it again, or from another cache")


def _outcome(unpacker: _Unpacker, data: bytes, compression: str, where: str) -> Iterator[bytes]:
    try:
        yield unpacker.decompress(data, PIECE)
        while not unpacker.eof and not unpacker.needs_input:
            yield unpacker.decompress(b"", PIECE)
    except _DAMAGES as error:
        raise StoreReadError(
            f"{where} cannot be unpacked ({compression}): {error}", hint="fetch it again, or from another cache"
        ) from error


class _Gzip:
    """zlib with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Brotli:
    """brotli with the interface of the others."""

    unused_data = b""

    def __init__(self) -> None:
        try:
            import brotli
        except ImportError:
            raise InvalidConfig(
                "an archive is packed with Brotli, and the package brotli is not installed",
                hint="pip install 'nixery-core[cache]'",
            ) from None
        self._inner = brotli.Decompressor()
        self._error = brotli.error
        self._full = False

    @property
    def eof(self) -> bool:
        return bool(self._inner.is_finished())

    @property
    def needs_input(self) -> bool:
        # what was taken in may not have come out yet, although it would take more
        return bool(self._inner.can_accept_more_data()) and not self._full

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if data and self.eof:
            raise ValueError("there is something behind its end")
        try:
            unpacked: bytes = self._inner.process(data, output_buffer_limit=max_length)
        except self._error as error:
            raise ValueError(str(error)) from None
        self._full = len(unpacked) >= max_length
        return unpacked


_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    "bzip2": bz2.BZ2Decompressor,
    "gzip": _Gzip,
    "zstd": zstd.ZstdDecompressor,
    "br": _Brotli,
}

"""How layers are compressed: codecs with fixed parameters, one independent frame for each chunk.

A chunk is a fixed number of bytes of the archive, so the bytes of a blob depend on the archive
alone, whatever thread compresses which chunk and when.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import attrs

from nixery_core.errors import InvalidConfig, StorageError, nearest
from nixery_core.model.oci import LAYER, LAYER_GZIP, LAYER_ZSTD

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MIB = 1 << 20
# no flags, no time, nothing on how it was made, an unknown system (RFC 1952, section 2.3)
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_RAW_DEFLATE = -15
_GZIP = 16 + 15
_NAME = re.compile(r"(?P<codec>[a-z]+)(?::(?P<level>[0-9]{1,2}))?")


class Codec(Protocol):
    """A compression of layers with its parameters; it pickles and is used by several threads at once."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        ...

    @property
    def media_type(self) -> str:
        """The media type of a layer in this compression (image-spec, layer.md)."""
        ...

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk; the last chunk may have fewer."""
        ...

    def compress(self, chunk: bytes | bytearray | memoryview) -> bytes:
        """Return one whole frame: frames put behind each other are the compressed archive."""
        ...

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give the archive back, whoever compressed it; raises StorageError for damaged or missing bytes."""
        ...


@attrs.frozen
class GzipCodec:
    """gzip, as every client reads it: one member for each MiB.

    >>> codec = GzipCodec()
    >>> b"".join(codec.decompress([codec.compress(b"one"), codec.compress(b"two")]))
    b'onetwo'
    """

    level: int = 6
    """0 (stored) to 9 (smallest)."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        return f"gzip-zlib-{self.level}-1m"

    @property
    def media_type(self) -> str:
        """The media type of a layer in this compression."""
        return LAYER_GZIP

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk."""
        return _MIB

    def compress(self, chunk: bytes | bytearray | memoryview) -> bytes:
        """Return one gzip member."""
        deflated = zlib.compress(chunk, self.level, _RAW_DEFLATE)
        trailer = zlib.crc32(chunk).to_bytes(4, "little") + (len(chunk) & 0xFFFFFFFF).to_bytes(4, "little")
        return b"".join((_GZIP_HEADER, deflated, trailer))

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give the archive back from any gzip stream; raises StorageError."""
        member = None
        try:
            for piece in pieces:
                rest = piece
                while rest:
                    if member is None:
                        member = zlib.decompressobj(_GZIP)
                    data = member.decompress(rest, _MIB)
                    if data:
                        yield data
                    rest = member.unused_data if member.eof else member.unconsumed_tail
                    if member.eof:
                        member = None
        except zlib.error as error:
            raise _damaged("gzip", str(error)) from error
        if member is not None:
            raise _damaged("gzip", "it ends too early")


@attrs.frozen
class ZstdCodec:
    """Zstandard, smaller and much faster than gzip, for clients of 2020 and later: one frame for each 8 MiB.

    >>> codec = ZstdCodec()
    >>> b"".join(codec.decompress([codec.compress(b"one"), codec.compress(b"two")]))
    b'onetwo'
    """

    level: int = 3
    """1 (fastest) to 22 (smallest)."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        return f"zstd-{self.level}-8m"

    @property
    def media_type(self) -> str:
        """The media type of a layer in this compression."""
        return LAYER_ZSTD

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk: no decoder has to refuse a window of that size (RFC 8878)."""
        return 8 * _MIB

    def compress(self, chunk: bytes | bytearray | memoryview) -> bytes:
        """Return one frame, with the size and a checksum of its content."""
        parameter = zstd.CompressionParameter
        return zstd.compress(chunk, options={parameter.compression_level: self.level, parameter.checksum_flag: 1})

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give the archive back from any Zstandard stream; raises StorageError."""
        frame = None
        try:
            for piece in pieces:
                rest = piece
                while rest:
                    if frame is None:
                        frame = zstd.ZstdDecompressor()
                    data = frame.decompress(rest, _MIB)
                    if data:
                        yield data
                    while not frame.eof and not frame.needs_input:
                        yield frame.decompress(b"", _MIB)
                    rest = frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame = None
        except zstd.ZstdError as error:
            raise _damaged("zstd", str(error)) from error
        if frame is not None:
            raise _damaged("zstd", "it ends too early")


@attrs.frozen
class NoCodec:
    """No compression: for storage or networks that compress themselves."""

    @property
    def id(self) -> str:
        """Names the algorithm; enters layer keys."""
        return "none"

    @property
    def media_type(self) -> str:
        """The media type of a layer without compression."""
        return LAYER

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk."""
        return _MIB

    def compress(self, chunk: bytes | bytearray | memoryview) -> bytes:
        """Return *chunk*."""
        return bytes(chunk)

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give *pieces* back."""
        return iter(pieces)


def codec(name: str) -> Codec:
    """Return the codec *name*: ``gzip``, ``zstd`` or ``none``, with a level behind a colon; raises InvalidConfig.

    >>> codec("zstd:19").id
    'zstd-19-8m'
    """
    match = _NAME.fullmatch(name)
    kind, level = (match["codec"], match["level"]) if match else (name, None)
    if kind == "gzip":
        return GzipCodec() if level is None else GzipCodec(_level(name, int(level), 0, 9))
    if kind == "zstd":
        return ZstdCodec() if level is None else ZstdCodec(_level(name, int(level), 1, 22))
    if kind == "none" and level is None:
        return NoCodec()
    near = nearest(kind, ("gzip", "zstd", "none"), limit=1)
    hint = f"did you mean {near[0]}?" if near else "use gzip, zstd, zstd:<level> or none"
    raise InvalidConfig(f"there is no codec {name!r}", hint=hint)


def codec_for_media_type(media_type: str) -> Codec:
    """Return the codec that reads layers of *media_type*, Docker's names included; raises InvalidConfig.

    >>> codec_for_media_type("application/vnd.docker.image.rootfs.diff.tar.gzip").id
    'gzip-zlib-6-1m'
    """
    found = _BY_MEDIA_TYPE.get(media_type)
    if found is None:
        raise InvalidConfig(f"{media_type!r} is not the media type of a layer that can be read")
    return found


_BY_MEDIA_TYPE: dict[str, Codec] = {
    LAYER: NoCodec(),
    LAYER_GZIP: GzipCodec(),
    LAYER_ZSTD: ZstdCodec(),
    "application/vnd.docker.image.rootfs.diff.tar": NoCodec(),
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GzipCodec(),
    "application/vnd.docker.image.rootfs.diff.tar.zstd": ZstdCodec(),
}


def _level(name: str, level: int, lowest: int, highest: int) -> int:
    if not lowest <= level <= highest:
        raise InvalidConfig(f"the codec {name!r} has no such level", hint=f"levels are {lowest} to {highest}")
    return level


def _damaged(what: str, why: str) -> StorageError:
    return StorageError(f"a {what} layer is damaged: {why}", hint="delete its blob and build the image again")

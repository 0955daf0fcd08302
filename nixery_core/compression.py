"""How layers are compressed: codecs with fixed parameters, one independent frame for each chunk.

A chunk is a fixed number of bytes of the archive, so the bytes of a blob depend on the archive
alone, whatever thread compresses which chunk and when.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

import attrs
import deflate
from isal import isal_zlib

from nixery_core.errors import InvalidConfig, StorageError, nearest
from nixery_core.model.oci import LAYER, LAYER_GZIP, LAYER_ZSTD

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MIB = 1 << 20
# window of 32 KiB, gzip format: what zlib's functions take as "wbits"
_GZIP = 16 + 15
_NAME = re.compile(r"(?P<codec>[a-z]+(?:-[a-z]+)*)(?::(?P<level>[0-9]{1,2}))?")


def _levels(highest: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(codec: object, _: attrs.Attribute[int], level: int) -> None:
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= highest:
            raise InvalidConfig(f"{type(codec).__name__} has no level {level!r}", hint=f"its levels are 1 to {highest}")

    return check


Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a codec takes."""


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

    def compress(self, chunk: Buffer) -> bytes | bytearray:
        """Return one whole frame: frames put behind each other are the compressed archive."""
        ...

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give the archive back, whoever compressed it; raises StorageError for damaged or missing bytes."""
        ...


class _Gzip:
    """What all makers of gzip members share."""

    __slots__ = ()

    @property
    def media_type(self) -> str:
        """The media type of a layer in this compression."""
        return LAYER_GZIP

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk."""
        return _MIB

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give the archive back from any gzip stream; raises StorageError."""
        return _gunzip(pieces)


@attrs.frozen
class GzipCodec(_Gzip):
    """gzip, as every client reads it: one member for each MiB, made by libdeflate.

    At its own level it is smaller than zlib at level 6, in a third of the time.

    >>> codec = GzipCodec()
    >>> b"".join(codec.decompress([codec.compress(b"one"), codec.compress(b"two")]))
    b'onetwo'
    """

    level: int = attrs.field(default=6, validator=_levels(12))
    """1 (fastest) to 12 (smallest)."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        return f"gzip-libdeflate-{self.level}-1m"

    def compress(self, chunk: Buffer) -> bytes | bytearray:
        """Return one gzip member: no time, no name, no system in its header."""
        return deflate.gzip_compress(chunk, self.level)


@attrs.frozen
class FastGzipCodec(_Gzip):
    """gzip in a fraction of the time, for a tenth more bytes: one member for each MiB, made by ISA-L.

    For builds that nobody waits for less than for pulls: a registry on the same network, a CI run.
    """

    level: int = attrs.field(default=2, validator=_levels(3))
    """1 (fastest) to 3 (smallest)."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        return f"gzip-isal-{self.level}-1m"

    def compress(self, chunk: Buffer) -> bytes | bytearray:
        """Return one gzip member: no time, no name, no system in its header."""
        return isal_zlib.compress(chunk, self.level, _GZIP)


def _gunzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
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

    level: int = attrs.field(default=3, validator=_levels(22))
    """1 (fastest) to 22 (smallest)."""

    @property
    def id(self) -> str:
        """Names the algorithm, its parameters and its chunks; enters layer keys."""
        return f"zstd-{self.level}-4m"

    @property
    def media_type(self) -> str:
        """The media type of a layer in this compression."""
        return LAYER_ZSTD

    @property
    def chunk_bytes(self) -> int:
        """How many bytes of an archive make one chunk; a larger one would save a thousandth (decision 0004)."""
        return 4 * _MIB

    def compress(self, chunk: Buffer) -> bytes | bytearray:
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

    def compress(self, chunk: Buffer) -> bytes | bytearray:
        """Return *chunk*."""
        return chunk if isinstance(chunk, bytes) else bytes(chunk)

    def decompress(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Give *pieces* back."""
        return iter(pieces)


def codec(name: str) -> Codec:
    """Return the codec *name*, with a level behind a colon where it has levels; raises InvalidConfig.

    ``gzip`` (levels 1 to 12), ``gzip-fast`` (1 to 3), ``zstd`` (1 to 22) or ``none``.

    >>> codec("zstd:19").id
    'zstd-19-4m'
    """
    match = _NAME.fullmatch(name)
    kind, level = (match["codec"], match["level"]) if match else (name, None)
    if kind in _LEVELS:
        return _LEVELS[kind]() if level is None else _LEVELS[kind](int(level))
    if kind == "none" and level is None:
        return NoCodec()
    near = nearest(kind, (*_LEVELS, "none"), limit=1)
    hint = f"did you mean {near[0]}?" if near else "use gzip, gzip-fast, zstd or none, with a level as in zstd:19"
    raise InvalidConfig(f"there is no codec {name!r}", hint=hint)


_LEVELS: dict[str, Callable[..., Codec]] = {"gzip": GzipCodec, "gzip-fast": FastGzipCodec, "zstd": ZstdCodec}


def codec_for_media_type(media_type: str) -> Codec:
    """Return the codec that reads layers of *media_type*, Docker's names included; raises InvalidConfig.

    >>> codec_for_media_type("application/vnd.docker.image.rootfs.diff.tar.gzip").id
    'gzip-libdeflate-6-1m'
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


def _damaged(what: str, why: str) -> StorageError:
    return StorageError(f"a {what} layer is damaged: {why}", hint="delete its blob and build the image again")

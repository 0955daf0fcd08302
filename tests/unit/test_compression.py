"""The codecs: what they write, and what they read."""

import argparse
import gzip
import hashlib
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nixery_core.compression import Codec, FastGzipCodec, GzipCodec, NoCodec, ZstdCodec, codec, codec_for_media_type
from nixery_core.errors import InvalidConfig, StorageError
from nixery_core.model.oci import LAYER, LAYER_GZIP, LAYER_ZSTD

ALL = [
    GzipCodec(),
    GzipCodec(1),
    GzipCodec(12),
    FastGzipCodec(),
    FastGzipCodec(3),
    ZstdCodec(),
    ZstdCodec(19),
    NoCodec(),
]
TEXT = b"".join(b"line %d of a text\n" % number for number in range(40_000))
# what layers are made of: text, machine code and tables, as this Python itself has them
LIBRARY = Path(argparse.__file__).parent
PROGRAMS = b"".join(file.read_bytes() for kind in ("*.py", "**/*.so*") for file in sorted(LIBRARY.glob(kind)))[
    : 9 << 20
]
NOISE = random.Random(1).randbytes(1 << 20)


def frames(codec: Codec, data: bytes) -> list[bytes]:
    size = codec.chunk_bytes
    return [codec.compress(data[start : start + size]) for start in range(0, len(data), size)] or [codec.compress(b"")]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.id)
class TestEveryCodec:
    @pytest.mark.parametrize(
        "data", [b"", b"x", TEXT, NOISE, bytes(9 << 20)], ids=["empty", "one", "text", "noise", "zeros"]
    )
    def test_what_is_compressed_comes_back(self, codec: Codec, data: bytes) -> None:
        """Frames behind each other are the whole archive, however the stream is cut."""
        stream = b"".join(frames(codec, data))
        assert b"".join(codec.decompress([stream])) == data
        assert b"".join(codec.decompress(cut(stream, 4093))) == data

    def test_kind_of_buffer_does_not_matter(self, codec: Codec) -> None:
        """Any bytes-like chunk gives the same frame."""
        assert codec.compress(bytearray(TEXT)) == codec.compress(memoryview(TEXT)) == codec.compress(TEXT)

    def test_frame_does_not_keep_the_buffer(self, codec: Codec) -> None:
        """The buffer of a chunk may be used again at once."""
        buffer = bytearray(TEXT)
        frame = codec.compress(buffer)
        expected = bytes(frame)
        buffer[:] = bytes(len(buffer))
        assert frame == expected

    def test_pickles(self, codec: Codec) -> None:
        """A codec travels to other processes."""
        assert pickle.loads(pickle.dumps(codec)) == codec

    def test_memory_of_reading_is_bounded(self, codec: Codec) -> None:
        """However well a stream is compressed, pieces stay small."""
        stream = b"".join(frames(codec, bytes(32 << 20)))
        assert max(len(piece) for piece in codec.decompress(cut(stream, 1 << 20))) <= 1 << 20


@pytest.mark.parametrize("codec", [GzipCodec(), FastGzipCodec(), ZstdCodec()], ids=lambda codec: codec.id)
class TestDamage:
    def test_truncated_stream(self, codec: Codec) -> None:
        """A stream that ends early is an error, wherever it ends."""
        stream = codec.compress(TEXT) + codec.compress(NOISE)
        for end in (1, 9, 100, len(codec.compress(TEXT)) + 3, len(stream) - 1):
            with pytest.raises(StorageError, match="damaged"):
                list(codec.decompress(cut(stream[:end], 1000)))

    def test_damaged_stream(self, codec: Codec) -> None:
        """A stream with other bytes in it is an error."""
        stream = codec.compress(TEXT)
        for bad in (b"\0" + stream[1:], stream + b"junk", stream[:200] + bytes(200) + stream[400:]):
            with pytest.raises(StorageError, match="damaged"):
                list(codec.decompress([bad]))


class TestGzip:
    def test_header_tells_nothing(self) -> None:
        """No time, no file name, no operating system: equal chunks give equal bytes everywhere."""
        for either in (GzipCodec(), FastGzipCodec()):
            assert either.compress(b"x")[:10] == bytes.fromhex("1f8b08000000000000ff")

    def test_python_reads_members(self) -> None:
        """Many members are one gzip stream."""
        for either in (GzipCodec(), FastGzipCodec()):
            assert gzip.decompress(b"".join(frames(either, TEXT * 4))) == TEXT * 4

    def test_is_not_larger_than_zlib(self) -> None:
        """Chunks of a MiB are not larger than what everybody else writes: zlib at level 6, in one piece."""
        assert len(b"".join(frames(GzipCodec(), PROGRAMS))) <= len(gzip.compress(PROGRAMS, 6))

    def test_fast_is_not_much_larger(self) -> None:
        """What is saved in time costs less than a fifth in size."""
        assert len(b"".join(frames(FastGzipCodec(), PROGRAMS))) <= 1.2 * len(gzip.compress(PROGRAMS, 6))

    def test_trailer(self) -> None:
        """Each member ends with the checksum and the size of its chunk."""
        for either in (GzipCodec(), FastGzipCodec()):
            assert either.compress(TEXT)[-8:] == struct.pack("<II", zlib.crc32(TEXT), len(TEXT))


class TestZstd:
    def test_frames_tell_their_size(self) -> None:
        """A decoder knows from each frame how much memory it needs, and each has to grant 8 MiB."""
        for level in (1, 3, 22):
            for frame in frames(ZstdCodec(level), NOISE * 9):
                descriptor = frame[4]
                assert descriptor >> 6, "the content size is there"
                assert descriptor & 0x04, "a checksum is there"
                assert window(frame) <= 8 << 20

    def test_levels_differ(self) -> None:
        """A level changes the bytes, so it is in the id."""
        ids = {ZstdCodec(level).id: hashlib.sha256(ZstdCodec(level).compress(TEXT)).digest() for level in (1, 3, 19)}
        assert len(set(ids.values())) == len(ids) == 3


def window(frame: bytes) -> int:
    """Return the memory that a decoder needs (RFC 8878, section 3.1.1.1)."""
    if frame[4] & 0x20:
        return {1: 256 + int.from_bytes(frame[5:7], "little"), 2: int.from_bytes(frame[5:9], "little")}[frame[4] >> 6]
    base = 1 << 10 + (frame[5] >> 3)
    return base + base // 8 * (frame[5] & 7)


class TestLookUp:
    def test_names(self) -> None:
        """Names are what users write; ids carry every parameter."""
        ids = {
            name: codec(name).id for name in ("gzip", "gzip:9", "gzip-fast", "gzip-fast:1", "zstd", "zstd:19", "none")
        }
        assert ids == {
            "gzip": "gzip-libdeflate-6-1m",
            "gzip:9": "gzip-libdeflate-9-1m",
            "gzip-fast": "gzip-isal-2-1m",
            "gzip-fast:1": "gzip-isal-1-1m",
            "zstd": "zstd-3-4m",
            "zstd:19": "zstd-19-4m",
            "none": "none",
        }

    def test_media_types(self) -> None:
        """Each codec says what its layers are, and is found by it."""
        for name, media_type in {"gzip": LAYER_GZIP, "zstd": LAYER_ZSTD, "none": LAYER}.items():
            assert codec(name).media_type == media_type
            assert codec_for_media_type(media_type) == codec(name)

    @pytest.mark.parametrize(
        "name",
        [
            "gzp",
            "GZIP",
            "zst",
            "zstd:",
            "zstd:0",
            "zstd:23",
            "gzip:0",
            "gzip:13",
            "gzip-fast:4",
            "gzip-",
            "none:1",
            "zstd:-1",
            "",
        ],
    )
    def test_unknown_names(self, name: str) -> None:
        """What is no codec is an error that says what is."""
        with pytest.raises(InvalidConfig) as raised:
            codec(name)
        assert raised.value.hint

    @pytest.mark.parametrize("make", [GzipCodec, FastGzipCodec, ZstdCodec])
    @pytest.mark.parametrize("level", [0, 23, True, "3", None])
    def test_unknown_levels(self, make: Callable[..., Codec], level: object) -> None:
        """A level that the library below would refuse is refused at once, and so is what is no number."""
        with pytest.raises(InvalidConfig, match="has no level"):
            make(level)

    def test_near_match(self) -> None:
        """A typo is recognised."""
        with pytest.raises(InvalidConfig, match="did you mean gzip"):
            codec("gizp")

    def test_unknown_media_type(self) -> None:
        """A layer in a compression that nobody here can read is named."""
        with pytest.raises(InvalidConfig, match="tar\\+lz4"):
            codec_for_media_type("application/vnd.oci.image.layer.v1.tar+lz4")

"""Whole documents at any URL, unpacked: small facts that come from outside, such as popularity data."""

from __future__ import annotations

import gzip
import http.client
import io
import lzma
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from types import ModuleType

import fsspec

from nixery_core._redact import redact
from nixery_core.errors import InvalidDocument, ObjectNotFound, StorageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TIMEOUT = 60.0
"""Longest silence of the other side, seconds."""
MOST_BYTES = 256 << 20
"""Most bytes of a document, packed or not: whoever writes it shall not fill our memory."""
_MOST_WINDOW = 128 << 20
"""Most memory that unpacking may take beside the document itself, bytes: ``xz -9`` needs 65 MiB, ``zstd -19`` 8 MiB."""


def read_document(url: str) -> bytes:
    """Return the bytes at *url*, unpacked if they are gzip, xz, Zstandard or, by the name ``.br``, Brotli.

    Args:
        url: A path, an ``http(s)://`` address, or any URL that fsspec knows.

    Raises:
        ObjectNotFound: There is nothing at *url*.
        StorageError: It cannot be read.
        InvalidDocument: The compression is damaged, or there are more than MOST_BYTES.
    """
    data = _read_web(url) if url.startswith(("http://", "https://")) else _read_fsspec(url)
    # Brotli has no mark at its beginning
    brotli = url.partition("#")[0].partition("?")[0].endswith(".br")
    return unpack_document(data, where=redact(url), brotli=brotli)


def unpack_document(data: bytes, *, where: str, brotli: bool = False) -> bytes:
    """Return *data*, unpacked if it is gzip, xz or Zstandard, or *brotli*; raises InvalidDocument with *where*."""
    if len(data) > MOST_BYTES:
        raise _too_large(where)
    packed = _unbrotli if brotli else None
    unpack = packed or next((f for magic, f in _UNPACKERS.items() if data.startswith(magic)), None)
    if unpack is None:
        return data
    try:
        result = unpack(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        raise InvalidDocument(f"{where} cannot be unpacked: {error}", hint="fetch or pack it again") from error
    if len(result) > MOST_BYTES:
        raise _too_large(where)
    return result


def _read_web(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310 (the scheme was checked)
            data: bytes = response.read(MOST_BYTES + 1)
            # reading with a limit does not tell that the connection broke before the promised end
            if response.length and len(data) <= MOST_BYTES:
                raise http.client.IncompleteRead(data, response.length)
            return data
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise _not_found(url) from None
            hint = "check the access rights" if error.code in (401, 403, 407) else "try again later"
            raise StorageError(f"{redact(url)} answered {error.code} {error.reason}", hint=hint) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise StorageError(
            f"{redact(url)} cannot be read: {reason}", hint="check the network and the address"
        ) from error


def _read_fsspec(url: str) -> bytes:
    try:
        filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
        data: bytes = filesystem.cat_file(path, end=MOST_BYTES + 1)
    except FileNotFoundError:
        raise _not_found(url) from None
    except Exception as error:
        # every storage has a library with exceptions of its own
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{redact(url)} cannot be read: {reason}", hint="check the URL and the access rights"
        ) from error
    return data


def _gunzip(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(MOST_BYTES + 1)


def _unxz(data: bytes) -> bytes:
    # LZMAFile has no limit of memory, so its loop over the streams of a file is here
    result = bytearray()
    while data and len(result) <= MOST_BYTES:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_WINDOW)
        result += stream.decompress(data, MOST_BYTES + 1 - len(result))
        if len(result) <= MOST_BYTES and not stream.eof:
            raise EOFError("it is cut short")
        # streams are padded with zero bytes (xz file format, 2.2)
        data = stream.unused_data.lstrip(b"\0")
    return bytes(result)


def _unzstd(data: bytes) -> bytes:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _MOST_WINDOW.bit_length() - 1}
    with zstd.ZstdFile(io.BytesIO(data), options=options) as file:
        return file.read(MOST_BYTES + 1)


def _brotli() -> ModuleType:
    try:
        import brotli
    except ImportError as error:
        raise StorageError(
            "a .br document needs the package brotli", hint="pip install 'nixery-core[cache]'"
        ) from error
    module: ModuleType = brotli
    return module


def _unbrotli(data: bytes) -> bytes:
    brotli = _brotli()
    stream = brotli.Decompressor()
    result = bytearray()
    try:
        while not stream.is_finished() and len(result) <= MOST_BYTES:
            piece = stream.process(data, output_buffer_limit=1 << 20)
            data = b""
            result += piece
            if not piece and stream.can_accept_more_data():
                raise EOFError("it is cut short")
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return bytes(result)


_UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"\xfd7zXZ\x00": _unxz,
    b"\x28\xb5\x2f\xfd": _unzstd,
}


def _pack_gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=9, mtime=0)


def _pack_xz(data: bytes) -> bytes:
    return lzma.compress(data)


def _pack_zstd(data: bytes) -> bytes:
    return zstd.compress(data, level=15)


def _pack_brotli(data: bytes) -> bytes:
    # the best quality, 11, is many times slower for a few percent
    packed: bytes = _brotli().compress(data, quality=9)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": _pack_gzip,
    ".xz": _pack_xz,
    ".zst": _pack_zstd,
    ".br": _pack_brotli,
}
"""What packs a document, by the end of its name."""


def pack_document(data: bytes, name: str) -> bytes:
    """Return *data* packed as the end of *name* says; the same bytes for the same input.

    Raises StorageError where the name asks for Brotli and its package is not installed.

    >>> unpack_document(pack_document(b"{}", "index.json.xz"), where="index")
    b'{}'
    """
    return next((pack(data) for end, pack in PACKERS.items() if name.endswith(end)), data)


def _not_found(url: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is nothing at {redact(url)}", hint="check its spelling")


def _too_large(where: str) -> InvalidDocument:
    return InvalidDocument(f"{where} has more than {MOST_BYTES >> 20} MiB", hint="is it the right document?")

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


def read_document(url: str) -> bytes:
    """Return the bytes at *url*, unpacked if they are gzip, xz or Zstandard.

    Args:
        url: A path, an ``http(s)://`` address, or any URL that fsspec knows.

    Raises:
        ObjectNotFound: There is nothing at *url*.
        StorageError: It cannot be read.
        InvalidDocument: The compression is damaged, or there are more than MOST_BYTES.
    """
    data = _read_web(url) if url.startswith(("http://", "https://")) else _read_fsspec(url)
    if len(data) > MOST_BYTES:
        raise _too_large(url)
    return _unpack(data, url)


def _read_web(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310 (the scheme was checked)
            data: bytes = response.read(MOST_BYTES + 1)
            return data
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise _not_found(url) from None
            raise StorageError(f"{redact(url)} answered {error.code} {error.reason}", hint="try again later") from None
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
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{redact(url)} cannot be read: {reason}", hint="check the URL and the access rights"
        ) from error
    return data


def _unpack(data: bytes, url: str) -> bytes:
    unpack: Callable[[bytes], bytes] | None = next(
        (f for magic, f in _UNPACKERS.items() if data.startswith(magic)), None
    )
    if unpack is None:
        return data
    try:
        result = unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        raise InvalidDocument(f"{redact(url)} cannot be unpacked: {error}", hint="fetch or pack it again") from error
    if len(result) > MOST_BYTES:
        raise _too_large(url)
    return result


def _gunzip(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(MOST_BYTES + 1)


def _unxz(data: bytes) -> bytes:
    with lzma.LZMAFile(io.BytesIO(data)) as file:
        return file.read(MOST_BYTES + 1)


def _unzstd(data: bytes) -> bytes:
    with zstd.ZstdFile(io.BytesIO(data)) as file:
        return file.read(MOST_BYTES + 1)


_UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"\xfd7zXZ\x00": _unxz,
    b"\x28\xb5\x2f\xfd": _unzstd,
}


def _not_found(url: str) -> ObjectNotFound:
    return ObjectNotFound(f"there is nothing at {redact(url)}", hint="check its spelling")


def _too_large(url: str) -> InvalidDocument:
    return InvalidDocument(f"{redact(url)} has more than {MOST_BYTES >> 20} MiB", hint="is it the right document?")

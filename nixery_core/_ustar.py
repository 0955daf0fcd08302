"""Headers of tar members: ustar, and PAX records for what has no room there.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format".
"""

from __future__ import annotations

import functools
import zlib

BLOCK = 512
"""Bytes of a header; contents are padded to a multiple of it."""

REGULAR, SYMLINK, DIRECTORY = b"0", b"2", b"5"

_PAX = b"x"
_PAX_NAME = b"././@PaxHeader"
_NAME_FIELD = 100
_PREFIX_FIELD = 155
# modification time 1, between size and checksum
_MTIME = b"\0" + b"%011o\0" % 1
# magic, version, no user name, no group name, device 0,0
_USTAR = b"ustar\0" + b"00" + bytes(64) + b"0000000\0" * 2
# the prefix, and twelve bytes that belong to no field
_NO_PREFIX = bytes(_PREFIX_FIELD + 12)
_NO_TARGET = bytes(_NAME_FIELD)
# the largest numbers of a header field of 12 and of 8 bytes
_MAX_SIZE = 8**11 - 1
_MAX_ID = 8**7 - 1


def header(flag: bytes, name: bytes, mode: int, uid: int, gid: int, size: int, target: bytes) -> bytes:
    """Return the header of a member, with a PAX header before it where a field has no room.

    The bytes depend on the arguments alone: modification time 1, no owner names, device 0.

    >>> len(header(REGULAR, b"nix/store", 0o444, 0, 0, 0, b"")), len(header(REGULAR, b"n" * 101, 0o444, 0, 0, 0, b""))
    (512, 1536)
    """
    if len(name) > _NAME_FIELD or target or size > _MAX_SIZE or uid > _MAX_ID or gid > _MAX_ID:
        return _extended(flag, name, mode, uid, gid, size, target)
    # nearly all members come this way: what they share is made once
    middle, end, constant = _shared(flag, mode, uid, gid)
    digits = b"%011o" % size
    return b"%b%b%b%b%06o\0 %b" % (
        name.ljust(_NAME_FIELD, b"\0"),
        middle,
        digits,
        _MTIME,
        constant + _sum(name) + _sum(digits),
        end,
    )


def padding(size: int) -> bytes:
    """Return the zeros that stand behind *size* bytes of content."""
    return bytes(-size % BLOCK)


@functools.lru_cache(maxsize=64)
def _shared(flag: bytes, mode: int, uid: int, gid: int) -> tuple[bytes, bytes, int]:
    middle = b"%07o\0%07o\0%07o\0" % (mode & 0o7777, uid, gid)
    end = flag + _NO_TARGET + _USTAR + _NO_PREFIX
    # the checksum field itself counts as eight spaces
    return middle, end, sum(middle) + sum(_MTIME) + sum(end) + 8 * ord(" ")


def _extended(flag: bytes, name: bytes, mode: int, uid: int, gid: int, size: int, target: bytes) -> bytes:
    prefix = b""
    records: list[tuple[bytes, bytes]] = []
    if len(name) > _NAME_FIELD:
        prefix, short = _split(name)
        if not short:
            records.append((b"path", name))
            short = name[:_NAME_FIELD]
        name = short
    if len(target) > _NAME_FIELD:
        records.append((b"linkpath", target))
        target = target[:_NAME_FIELD]
    if size > _MAX_SIZE:
        records.append((b"size", b"%d" % size))
        size = 0
    if uid > _MAX_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MAX_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    front = name.ljust(_NAME_FIELD, b"\0")
    middle, _, constant = _shared(flag, mode, uid, gid)
    digits = b"%011o" % size
    checksum = constant + _sum(name) + _sum(digits) + _sum(target) + _sum(prefix)
    end = flag + target.ljust(_NAME_FIELD, b"\0") + _USTAR + prefix.ljust(len(_NO_PREFIX), b"\0")
    own = b"%b%b%b%b%06o\0 %b" % (front, middle, digits, _MTIME, checksum, end)
    return _pax(records) + own if records else own


def _sum(part: bytes) -> int:
    """Return the sum of up to 256 bytes.

    Adler-32 without its usual start holds it in its low half, as long as it is below 65521.
    """
    return zlib.adler32(part, 0) & 0xFFFF


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Cut *name* at a slash for the two fields of a header; return two empty texts where that cannot be."""
    end = len(name) - 1 if name.endswith(b"/") else len(name)
    slash = name.rfind(b"/", 0, min(_PREFIX_FIELD + 1, end))
    if slash <= 0 or len(name) - slash - 1 > _NAME_FIELD:
        return b"", b""
    return name[:slash], name[slash + 1 :]


def _pax(records: list[tuple[bytes, bytes]]) -> bytes:
    if any(not _is_utf8(value) for _, value in records):
        # else a reader may take the value for UTF-8, which POSIX says it is
        records = [(b"hdrcharset", b"BINARY"), *records]
    body = b"".join(_record(keyword, value) for keyword, value in records)
    return header(_PAX, _PAX_NAME, 0o644, 0, 0, len(body), b"") + body + padding(len(body))


def _record(keyword: bytes, value: bytes) -> bytes:
    # the length counts itself
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True

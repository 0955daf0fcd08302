"""Deterministic tar archives of store paths and other entries."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator

import attrs

from nixery_core.errors import StoreReadError
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.reader import EntryType, StoreEntry, StoreReader

ARCHIVE_VERSION = 1
"""Changes whenever the bytes of an archive of the same entries change; enters every layer key."""
BATCH = 1 << 20
"""Bytes that are handed on at once: many small writes would cost more than the work on them."""

_BLOCK = 512
_ZEROS = bytes(2 * _BLOCK)
_MTIME = b"%011o\0" % 1
# magic, version, no user name, no group name, device 0,0
_USTAR = b"ustar\0" + b"00" + bytes(64) + b"0000000\0" * 2
_FLAGS = {EntryType.REGULAR: b"0", EntryType.SYMLINK: b"2", EntryType.DIRECTORY: b"5"}
# the largest numbers of a header field of 12 and of 8 bytes
_MAX_SIZE = 8**11 - 1
_MAX_ID = 8**7 - 1
# components that are neither empty nor dots nor whiteouts (image-spec, layer.md, "Whiteouts")
_NAME = re.compile(rb"(?!\.wh\.|\.\.?(?:/|\Z))[^/\0]+(?:/(?!\.wh\.|\.\.?(?:/|\Z))[^/\0]+)*")
_PAX_NAME = b"././@PaxHeader"


@attrs.frozen(kw_only=True)
class ArchiveEntry:
    """One member of a layer's archive, with the attributes that an image keeps."""

    name: bytes
    """Path relative to the root of the image, no leading or trailing ``/``: ``nix/store/...``."""
    type: EntryType
    mode: int
    """Permission bits, with sticky, setuid and setgid."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Size of a regular file, bytes."""
    target: bytes = b""
    """Target of a symbolic link."""
    contents: Callable[[], Iterator[bytes]] | None = attrs.field(default=None, eq=False, repr=False)
    """Gives the content of a regular file in pieces, once; None where it is empty or no regular file."""


def store_entries(paths: Iterable[StorePath], reader: StoreReader) -> Iterator[ArchiveEntry]:
    """Give the entries of a layer of store paths: ``nix``, ``nix/store``, then every path, sorted.

    Modes are those of the store: 0555 for directories and executables, 0444 for other files; the
    two parents, which every layer repeats, are 0755.  Raises StoreReadError.
    """
    store = STORE_DIR.lstrip("/").encode()
    for end in (store.index(b"/"), len(store)):
        yield ArchiveEntry(name=store[:end], type=EntryType.DIRECTORY, mode=0o755)
    for path in sorted(set(paths)):
        root = store + b"/" + path.base.encode()
        entries = reader.entries(path)
        try:
            for entry in entries:
                yield _archived(root, entry)
        finally:
            _close(entries)


def _archived(root: bytes, entry: StoreEntry) -> ArchiveEntry:
    name = root + b"/" + entry.name if entry.name else root
    if entry.type is EntryType.REGULAR:
        return ArchiveEntry(
            name=name,
            type=EntryType.REGULAR,
            mode=0o555 if entry.executable else 0o444,
            size=entry.size,
            contents=entry.contents,
        )
    if entry.type is EntryType.DIRECTORY:
        return ArchiveEntry(name=name, type=EntryType.DIRECTORY, mode=0o555)
    return ArchiveEntry(name=name, type=EntryType.SYMLINK, mode=0o777, target=entry.target)


def write_archive(
    entries: Iterable[ArchiveEntry],
    write: Callable[[bytes], object],
    *,
    on_progress: Callable[[int], object] | None = None,
) -> int:
    """Write *entries* as a tar archive and return its size, bytes.

    The bytes depend on the entries alone.  Members have ustar headers with modification time 1 and
    no owner names; a PAX header stands before one whose name, link target, size or owner has no
    room there.  Names are raw bytes, whatever their encoding.  The archive ends with two blocks of
    zeros and is not padded further.

    Args:
        entries: In the order of a walk: a directory before what it holds, names of one directory
            in byte order.
        write: Takes the archive in pieces of about 1 MiB, and may keep them.
        on_progress: Takes the bytes of file content archived so far, after every piece.

    Raises:
        StoreReadError: For entries that are out of order, twice there or cannot be in a layer; for
            a file whose content is shorter or longer than announced; and from the reader.

    Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format".

    >>> pieces = []
    >>> write_archive([ArchiveEntry(name=b"nix", type=EntryType.DIRECTORY, mode=0o755)], pieces.append)
    1536
    """
    batch = _Batch(write, on_progress)
    previous = b""
    try:
        for entry in entries:
            previous = _check(entry, previous)
            batch.add(_header(entry))
            if entry.size:
                _add_contents(entry, batch)
    finally:
        # what the reader holds open is closed now, not when it is collected
        _close(entries)
    batch.add(_ZEROS)
    batch.flush()
    return batch.written


class _Batch:
    """Collects small pieces until there are enough of them."""

    def __init__(self, write: Callable[[bytes], object], on_progress: Callable[[int], object] | None) -> None:
        self._write = write
        self._on_progress = on_progress
        self._pieces: list[bytes] = []
        self._size = 0
        self.written = 0
        self.contents = 0

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self._size:
            pieces, self._pieces = self._pieces, []
            self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self.written += self._size
            self._size = 0
            if self._on_progress is not None:
                self._on_progress(self.contents)


def _add_contents(entry: ArchiveEntry, batch: _Batch) -> None:
    if entry.contents is None or entry.type is not EntryType.REGULAR:
        raise StoreReadError(f"/{_show(entry.name)} has {entry.size} bytes, but no content")
    missing = entry.size
    pieces = entry.contents()
    try:
        for piece in pieces:
            missing -= len(piece)
            if missing < 0:
                break
            batch.contents += len(piece)
            batch.add(piece)
    finally:
        _close(pieces)
    if missing:
        change = "longer" if missing < 0 else f"{missing} bytes shorter"
        raise StoreReadError(
            f"/{_show(entry.name)} is {change} than the {entry.size} bytes that it began with",
            hint="it changed while it was archived, or the store is damaged: nix-store --verify --check-contents",
        )
    padding = -entry.size % _BLOCK
    if padding:
        batch.add(_ZEROS[:padding])


def _check(entry: ArchiveEntry, previous: bytes) -> bytes:
    """Return what the name of *entry* sorts by; raise if it may not stand behind *previous*."""
    name = entry.name
    if not _NAME.fullmatch(name):
        raise _refused(name)
    # with the slash as the lowest character, plain comparison gives the order of a walk
    order = name.replace(b"/", b"\0")
    if order <= previous:
        if order == previous:
            raise StoreReadError(f"/{_show(name)} is twice in the archive")
        raise StoreReadError(f"the entry /{_show(name)} is out of order: it comes after /{_show(previous)}")
    if entry.type is EntryType.SYMLINK and (not entry.target or b"\0" in entry.target):
        raise StoreReadError(f"/{_show(name)} is a symbolic link to nowhere")
    return order


def _refused(name: bytes) -> StoreReadError:
    if any(component.startswith(b".wh.") for component in name.split(b"/")):
        return StoreReadError(
            f"/{_show(name)} cannot be in an image layer: names that begin with .wh. mean removed files there",
            hint="leave out the package, or rename the file (image-spec, layer.md, 'Whiteouts')",
        )
    shown = name.decode(errors="backslashreplace")
    return StoreReadError(f"{shown!r} cannot be the name of an archive member: it is no plain relative path")


def _header(entry: ArchiveEntry) -> bytes:
    name = entry.name + b"/" if entry.type is EntryType.DIRECTORY else entry.name
    target, size, uid, gid = entry.target, entry.size, entry.uid, entry.gid
    prefix = b""
    records: list[tuple[bytes, bytes]] = []
    if len(name) > 100:
        prefix, short = _split(name)
        if not short:
            records.append((b"path", name))
            short = name[:100]
        name = short
    if len(target) > 100:
        records.append((b"linkpath", target))
        target = target[:100]
    if size > _MAX_SIZE:
        records.append((b"size", b"%d" % size))
        size = 0
    if uid > _MAX_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MAX_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    header = _ustar(name, entry.mode, uid, gid, size, _FLAGS[entry.type], target, prefix)
    return _pax(records) + header if records else header


def _ustar(
    name: bytes, mode: int, uid: int, gid: int, size: int, flag: bytes, target: bytes = b"", prefix: bytes = b""
) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0" % (mode & 0o7777, uid, gid, size)
    front = name.ljust(100, b"\0") + numbers + _MTIME
    rest = flag + target.ljust(100, b"\0") + _USTAR + prefix.ljust(167, b"\0")
    # the checksum field itself counts as eight spaces
    checksum = 8 * 32 + _sum(front) + _sum(rest[:256]) + _sum(rest[256:])
    return b"%b%06o\0 %b" % (front, checksum, rest)


def _sum(part: bytes) -> int:
    """Return the sum of up to 256 bytes.

    Adler-32 without its usual start holds it in its low half, as long as it is below 65521.
    """
    return zlib.adler32(part, 0) & 0xFFFF


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Cut *name* at a slash for the two fields of a header; return two empty texts where that cannot be."""
    end = len(name) - 1 if name.endswith(b"/") else len(name)
    slash = name.rfind(b"/", 0, min(156, end))
    if slash <= 0 or len(name) - slash - 1 > 100:
        return b"", b""
    return name[:slash], name[slash + 1 :]


def _pax(records: list[tuple[bytes, bytes]]) -> bytes:
    if any(not _is_utf8(value) for _, value in records):
        # else a reader may take the value for UTF-8, which POSIX says it is
        records = [(b"hdrcharset", b"BINARY"), *records]
    body = b"".join(_record(keyword, value) for keyword, value in records)
    header = _ustar(_PAX_NAME, 0o644, 0, 0, len(body), b"x")
    return header + body + bytes(-len(body) % _BLOCK)


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


def _show(name: bytes) -> str:
    return name.replace(b"\0", b"/").decode(errors="backslashreplace")


def _close(iterator: object) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()

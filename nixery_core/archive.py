"""Deterministic tar archives of store paths and other entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from nixery_core import _ustar
from nixery_core.errors import StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.nar_hash import verified
from nixery_core.stores.reader import EntryType, StoreEntry, StoreReader

ARCHIVE_VERSION = 1
"""Changes whenever the bytes of an archive of the same entries change; enters every layer key."""
PIECE = 1 << 20
"""Bytes of an archive that are handed on at once, unless asked otherwise."""

_END = bytes(2 * _ustar.BLOCK)
_PADDING = [_ustar.padding(size) for size in range(_ustar.BLOCK)]
_FLAGS = {
    EntryType.REGULAR: _ustar.REGULAR,
    EntryType.SYMLINK: _ustar.SYMLINK,
    EntryType.DIRECTORY: _ustar.DIRECTORY,
}
# looking them up costs as much as the rest of a comparison
_REGULAR, _SYMLINK, _DIRECTORY = EntryType.REGULAR, EntryType.SYMLINK, EntryType.DIRECTORY
# components that are neither empty nor dots nor whiteouts (image-spec, layer.md, "Whiteouts")
_NAME = re.compile(rb"(?!\.wh\.|\.\.?(?:/|\Z))[^/\0]+(?:/(?!\.wh\.|\.\.?(?:/|\Z))[^/\0]+)*")


# of the two kinds of frozen classes, those without slots are made in half the time: there is one for each file
@attrs.frozen(kw_only=True, slots=False)
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
    data: bytes | None = attrs.field(default=None, eq=False, repr=False)
    """The whole content of a regular file that is small enough to be at hand."""
    contents: Callable[[], Iterator[bytes]] | None = attrs.field(default=None, eq=False, repr=False)
    """Gives the content of a regular file in pieces, once, where there is no *data*."""


def store_entries(
    paths: Iterable[StorePath], reader: StoreReader, *, nar_hashes: Mapping[StorePath, Digest] | None = None
) -> Iterator[ArchiveEntry]:
    """Give the entries of a layer of store paths: ``nix``, ``nix/store``, then every path, sorted.

    Modes are those of the store: 0555 for directories and executables, 0444 for other files; the
    two parents, which every layer repeats, are 0755.

    Args:
        paths: Any order will do, and a path may be named twice.
        reader: Where their content comes from.
        nar_hashes: What paths must hash to; a path that does not raises StoreReadError at its end.

    Raises:
        StoreReadError: A path cannot be read, or is not what it should be.
    """
    store = STORE_DIR.lstrip("/").encode()
    for end in (store.index(b"/"), len(store)):
        yield ArchiveEntry(name=store[:end], type=EntryType.DIRECTORY, mode=0o755)
    for path in sorted(set(paths)):
        root = store + b"/" + path.base.encode()
        entries = reader.entries(path)
        if nar_hashes and path in nar_hashes:
            entries = verified(entries, path, nar_hashes[path])
        try:
            for entry in entries:
                yield _archived(root, entry)
        finally:
            _close(entries)


def _archived(root: bytes, entry: StoreEntry) -> ArchiveEntry:
    name = root + b"/" + entry.name if entry.name else root
    kind = entry.type
    if kind is _REGULAR:
        mode = 0o555 if entry.executable else 0o444
        return ArchiveEntry(name=name, type=kind, mode=mode, size=entry.size, data=entry.data, contents=entry.contents)
    if kind is _DIRECTORY:
        return ArchiveEntry(name=name, type=kind, mode=0o555)
    return ArchiveEntry(name=name, type=kind, mode=0o777, target=entry.target)


def write_archive(
    entries: Iterable[ArchiveEntry],
    write: Callable[[bytes], object],
    *,
    piece_bytes: int = PIECE,
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
        write: Takes the archive in pieces, and may keep them.
        piece_bytes: The size of every piece but the last, which may be smaller.
        on_progress: Takes the bytes of file content archived so far, after every piece.

    Raises:
        StoreReadError: For entries that are out of order, twice there or cannot be in a layer; for
            a file whose content is shorter or longer than announced; and from the reader.

    Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format".

    >>> pieces = []
    >>> write_archive([ArchiveEntry(name=b"nix", type=EntryType.DIRECTORY, mode=0o755)], pieces.append)
    1536
    """
    output = _Pieces(write, piece_bytes, on_progress)
    checked = _Names()
    try:
        for entry in entries:
            name, kind, size = entry.name, entry.type, entry.size
            checked.add(name)
            if kind is _DIRECTORY:
                name += b"/"
            elif kind is _SYMLINK and (not entry.target or b"\0" in entry.target):
                raise StoreReadError(f"/{_show(name)} is a symbolic link to nowhere")
            header = _ustar.header(_FLAGS[kind], name, entry.mode, entry.uid, entry.gid, size, entry.target)
            if not size and not entry.data:
                output.add(header)
            elif kind is not _REGULAR:
                raise StoreReadError(f"/{_show(name)} has {size} bytes, but no content")
            elif entry.data is not None:
                if len(entry.data) != size:
                    raise _changed(name, size - len(entry.data), size)
                output.add_small(header, entry.data, _PADDING[size % _ustar.BLOCK])
            else:
                output.add(header)
                _add_contents(entry, output)
                output.add(_PADDING[size % _ustar.BLOCK])
    finally:
        # what the reader holds open is closed now, not when it is collected
        _close(entries)
    output.add(_END)
    output.finish()
    return output.size


class _Pieces:
    """Cuts what is added into pieces of one size."""

    def __init__(
        self, write: Callable[[bytes], object], piece_bytes: int, on_progress: Callable[[int], object] | None
    ) -> None:
        self._write = write
        self._piece_bytes = piece_bytes
        self._on_progress = on_progress
        self._parts: list[bytes | memoryview] = []
        self._missing = piece_bytes
        self._content = 0
        self._pieces = 0

    @property
    def size(self) -> int:
        """Bytes added so far."""
        return self._pieces * self._piece_bytes + self._piece_bytes - self._missing

    def add(self, data: bytes) -> None:
        missing = self._missing - len(data)
        if missing > 0:
            self._parts.append(data)
            self._missing = missing
        else:
            self._cut(data)

    def add_content(self, data: bytes) -> None:
        self._content += len(data)
        self.add(data)

    def add_small(self, header: bytes, data: bytes, padding: bytes) -> None:
        """Add a member in one step: most are small, and three steps would take the longest of all."""
        missing = self._missing - len(header) - len(data) - len(padding)
        if missing > 0:
            self._parts += (header, data, padding)
            self._missing = missing
            self._content += len(data)
        else:
            self.add(header)
            self.add_content(data)
            self.add(padding)

    def finish(self) -> None:
        if self._parts:
            self._hand_on(b"".join(self._parts))

    def _cut(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) >= self._missing:
            self._parts.append(view[: self._missing])
            view = view[self._missing :]
            piece, self._parts, self._missing = b"".join(self._parts), [], self._piece_bytes
            self._pieces += 1
            self._hand_on(piece)
        if view:
            self._parts.append(view)
            self._missing -= len(view)

    def _hand_on(self, piece: bytes) -> None:
        self._write(piece)
        if self._on_progress is not None:
            self._on_progress(self._content)


def _add_contents(entry: ArchiveEntry, output: _Pieces) -> None:
    if entry.contents is None:
        raise StoreReadError(f"/{_show(entry.name)} has {entry.size} bytes, but no content")
    missing = entry.size
    pieces = entry.contents()
    try:
        for piece in pieces:
            missing -= len(piece)
            if missing < 0:
                break
            output.add_content(piece)
    finally:
        _close(pieces)
    if missing:
        raise _changed(entry.name, missing, entry.size)


def _changed(name: bytes, missing: int, size: int) -> StoreReadError:
    change = "longer" if missing < 0 else f"{missing} bytes shorter"
    return StoreReadError(
        f"/{_show(name)} is {change} than the {size} bytes that it began with",
        hint="it changed while it was archived, or the store is damaged: nix-store --verify --check-contents",
    )


class _Names:
    """Checks that names are sound, each there once, and in the order of a walk."""

    def __init__(self) -> None:
        self._previous = b""
        self._directory = b"\0"
        """What the previous name has up to its last slash: it has been checked."""

    def add(self, name: bytes) -> None:
        """Raise if *name* cannot be a member, or may not stand behind the names before it."""
        slash = name.rfind(b"/") + 1
        directory = name[:slash]
        if directory == self._directory:
            # a sibling of the previous name: only its last component is new
            sound, follows = _NAME.fullmatch(name, slash), name > self._previous
        else:
            # with the slash as the lowest character, plain comparison gives the order of a walk
            sound, follows = _NAME.fullmatch(name), name.replace(b"/", b"\0") > self._previous.replace(b"/", b"\0")
        if not sound:
            raise _refused(name)
        if not follows:
            if name == self._previous:
                raise StoreReadError(f"/{_show(name)} is twice in the archive")
            raise StoreReadError(f"the entry /{_show(name)} is out of order: it comes after /{_show(self._previous)}")
        self._previous = name
        self._directory = directory


def _refused(name: bytes) -> StoreReadError:
    if any(component.startswith(b".wh.") for component in name.split(b"/")):
        return StoreReadError(
            f"/{_show(name)} cannot be in an image layer: names that begin with .wh. mean removed files there",
            hint="leave out the package, or rename the file (image-spec, layer.md, 'Whiteouts')",
        )
    shown = name.decode(errors="backslashreplace")
    return StoreReadError(f"{shown!r} cannot be the name of an archive member: it is no plain relative path")


def _show(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _close(iterator: object) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()

"""NARs, the archives of Nix, read as a stream: entries on one side while bytes come in on the other.

Nothing of the archive is believed: every length is compared with what can still come, names must
be in order, and the bytes are counted and hashed on their way.

Source: Dolstra, "The Purely Functional Software Deployment Model", figure 5.2; Nix, ``archive.cc``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator

from nixery_core.errors import StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.stores._iterators import closing
from nixery_core.stores.reader import EntryType, StoreEntry

MAX_NAME = 255
"""Longest name in a directory, bytes; Linux has no longer ones."""
MAX_TARGET = 4095
"""Longest target of a symbolic link, bytes; Linux has no longer ones."""
MAX_DEPTH = 1000
"""Most directories within each other; Linux can name about 2000."""


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


def _texts(*texts: bytes) -> bytes:
    return b"".join(map(_text, texts))


_MAGIC = _texts(b"nix-archive-1", b"(", b"type")
_ENTRY = _texts(b"entry", b"(", b"name")
_CLOSE = _text(b")")
_PADDINGS = tuple(bytes(-length % 8) for length in range(8))
# what stands behind a name, by the length of its padding, up to the size or target or first child
_KINDS = tuple(
    tuple(
        padding + _texts(b"node", b"(", b"type") + kind
        for kind in (
            _texts(b"regular", b"contents"),
            _texts(b"regular", b"executable", b"", b"contents"),
            _texts(b"symlink", b"target"),
            _text(b"directory"),
        )
    )
    for padding in _PADDINGS
)
_ROOT_KINDS = tuple(kind.removeprefix(_texts(b"node", b"(", b"type")) for kind in _KINDS[0])
# what stands behind content and targets: a node ends, and the entry that holds it
_ENDS = tuple(padding + _CLOSE + _CLOSE for padding in _PADDINGS)
_ROOT_ENDS = tuple(padding + _CLOSE for padding in _PADDINGS)
_LONGEST_END = len(_ENDS[1])
# more than an entry takes without the content of a file: so many bytes are there, or the archive ends
_WINDOW = 8192
# most bytes of a file that an entry holds whole
_SMALL = 1 << 20


def nar_entries(
    pieces: Iterable[bytes], *, nar_hash: Digest, nar_size: int, where: str = "the NAR", file_hash: Digest | None = None
) -> Iterator[StoreEntry]:
    """Give the entries of a NAR, each with its content, in one pass and constant memory.

    The content of an entry comes from the same stream, so it is there until the next entry is taken.
    Only when the iterator ends without an error is the archive what was promised.

    Args:
        pieces: The bytes of the archive; closed in the end if it can be.
        nar_hash: sha256 of all bytes.
        nar_size: Their number; not one more is read.
        where: What the archive is called in errors.
        file_hash: The archive must be one plain file with this sha256: content addresses of files.

    Raises:
        StoreReadError: For whatever Nix would not write, for an archive that is cut short or goes
            on, and at the end where hash or size are other ones.
    """
    nar = _Nar(pieces, nar_size, where)
    return nar.entries(nar_hash, file_hash)


class _Nar:
    """The bytes that are there, and where in them the reader is."""

    __slots__ = (
        "_buffer",
        "_count",
        "_ended",
        "_file",
        "_left",
        "_pieces",
        "_position",
        "_serial",
        "_sha",
        "_size",
        "_where",
    )

    def __init__(self, pieces: Iterable[bytes], size: int, where: str) -> None:
        self._pieces = iter(pieces)
        self._size = size
        self._where = where
        self._buffer = b""
        self._position = 0
        self._count = 0
        self._ended = False
        self._sha = hashlib.sha256()
        # of the file whose content is being read
        self._left = 0
        self._serial = 0
        self._file: hashlib._Hash | None = None

    def entries(self, nar_hash: Digest, file_hash: Digest | None) -> Iterator[StoreEntry]:
        with closing(self._pieces):
            self._file = None if file_hash is None else hashlib.sha256()
            yield from self._root(file_hash)
            self._finish(nar_hash)

    def _root(self, file_hash: Digest | None) -> Iterator[StoreEntry]:
        buffer = self._refill(b"")
        if not buffer.startswith(_MAGIC):
            raise self._malformed(buffer, 0, "it is no NAR")
        position = len(_MAGIC)
        kind = _kind(buffer, position, _ROOT_KINDS)
        if file_hash is not None and kind != 0:
            raise self._error("is no plain file, but its content address is that of a file")
        if kind == 3:
            yield StoreEntry(name=b"", type=EntryType.DIRECTORY)
            self._buffer, self._position = buffer, position + len(_ROOT_KINDS[3])
            yield from self._directory()
            return
        if kind < 0:
            raise self._malformed(buffer, position, "the root is no file, link or directory")
        position += len(_ROOT_KINDS[kind])
        if kind == 2:
            target, position = self._target(buffer, position, b"", _ROOT_ENDS)
            self._buffer, self._position = buffer, position
            yield StoreEntry(name=b"", type=EntryType.SYMLINK, target=target)
            return
        size = int.from_bytes(buffer[position : position + 8], "little")
        yield self._begin(buffer, position + 8, b"", size, executable=kind == 1)
        self._end(size, b"", _ROOT_ENDS)
        if self._file is not None and self._file.hexdigest() != file_hash.hex:  # type: ignore[union-attr]
            raise self._error(f"holds a file with another hash than its content address, {file_hash}")

    def _directory(self) -> Iterator[StoreEntry]:
        """Give what the directories below the root hold; its loop runs once an entry, so it calls little."""
        buffer, position = self._buffer, self._position
        stack: list[tuple[bytes, bytes]] = []
        prefix, previous = b"", b""
        regular, symlink, directory = EntryType.REGULAR, EntryType.SYMLINK, EntryType.DIRECTORY
        while True:
            if len(buffer) - position < _WINDOW and not self._ended:
                buffer, position = self._refill(buffer[position:]), 0
            if not buffer.startswith(_ENTRY, position):
                if not buffer.startswith(_CLOSE, position):
                    raise self._malformed(buffer, position, f"the directory {_show(prefix)} neither goes on nor ends")
                position += len(_CLOSE)
                if not stack:
                    self._buffer, self._position = buffer, position
                    return
                prefix, previous = stack.pop()
                if not buffer.startswith(_CLOSE, position):
                    raise self._malformed(buffer, position, f"the entry {_show(prefix + previous)} does not end")
                position += len(_CLOSE)
                continue
            position += len(_ENTRY)
            length = int.from_bytes(buffer[position : position + 8], "little")
            position += 8
            end = position + length
            name = buffer[position:end]
            # in order, the empty name can only be the first, and is not: nothing sorts before it
            if name <= previous or length > MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
                raise self._bad_name(buffer, position, length, prefix, previous)
            previous = name
            name = prefix + name
            position = end
            kinds = _KINDS[length & 7]
            if buffer.startswith(kinds[0], position):
                kind = 0
            else:
                kind = _kind(buffer, position, kinds)
                if kind < 0:
                    raise self._malformed(buffer, position, f"{_show(name)} is no file, link or directory")
            position += len(kinds[kind])
            if kind < 2:
                size = int.from_bytes(buffer[position : position + 8], "little")
                position += 8
                end = position + size
                if size > _SMALL or end + _LONGEST_END > len(buffer):
                    yield self._begin(buffer, position, name, size, executable=kind == 1)
                    self._end(size, name, _ENDS)
                    buffer, position = self._buffer, self._position
                    continue
                if not buffer.startswith(_ENDS[size & 7], end):
                    raise self._malformed(buffer, end, f"the file {_show(name)} does not end")
                yield StoreEntry(
                    name=name,
                    type=regular,
                    executable=kind == 1,
                    size=size,
                    data=buffer[position:end],
                )
                position = end + len(_ENDS[size & 7])
            elif kind == 2:
                target, position = self._target(buffer, position, name, _ENDS)
                yield StoreEntry(name=name, type=symlink, target=target)
            else:
                if len(stack) >= MAX_DEPTH:
                    raise self._error(f"has more than {MAX_DEPTH} directories within each other")
                yield StoreEntry(name=name, type=directory)
                stack.append((prefix, previous))
                prefix, previous = name + b"/", b""

    def _begin(self, buffer: bytes, position: int, name: bytes, size: int, *, executable: bool) -> StoreEntry:
        """Return the entry of a file whose content begins at *position*, and may go on behind the buffer."""
        if size > self._size - self._count + len(buffer) - position:
            raise self._error(f"says that {_show(name)} has {size} bytes, more than the whole archive can hold")
        self._buffer, self._position, self._left = buffer, position, size
        self._serial += 1
        return StoreEntry(
            name=name,
            type=EntryType.REGULAR,
            executable=executable,
            size=size,
            contents=functools.partial(self._content, self._serial),
        )

    def _content(self, serial: int) -> Iterator[bytes]:
        while True:
            if self._serial != serial:
                raise StoreReadError(
                    f"{self._where}: the content of a file was asked for too late",
                    hint="take the contents of an entry before the next entry",
                )
            if not self._left:
                return
            yield self._some()

    def _some(self) -> bytes:
        """Take the next bytes of the file."""
        buffer, position = self._buffer, self._position
        if position == len(buffer):
            buffer, position = self._next(), 0
            if not buffer:
                raise self._error("ends within a file")
        end = position + self._left
        if end >= len(buffer):
            # the usual case within large files: nothing is copied
            piece = buffer[position:] if position else buffer
            self._buffer, self._position = b"", 0
        else:
            piece = buffer[position:end]
            self._buffer, self._position = buffer, end
        self._left -= len(piece)
        if self._file is not None:
            self._file.update(piece)
        return piece

    def _end(self, size: int, name: bytes, ends: tuple[bytes, ...]) -> None:
        """Pass over what nobody took of the file, and what stands behind it."""
        while self._left:
            self._some()
        self._serial += 1
        buffer = self._refill(self._buffer[self._position :])
        end = ends[size & 7]
        if not buffer.startswith(end):
            raise self._malformed(buffer, 0, f"the file {_show(name)} does not end")
        self._buffer, self._position = buffer, len(end)

    def _target(self, buffer: bytes, position: int, name: bytes, ends: tuple[bytes, ...]) -> tuple[bytes, int]:
        length = int.from_bytes(buffer[position : position + 8], "little")
        position += 8
        target = buffer[position : position + length]
        if not 0 < length <= MAX_TARGET or b"\0" in target:
            raise self._error(f"{_show(name)} is a link whose target is empty, longer than {MAX_TARGET} or has a NUL")
        position += length
        end = ends[length & 7]
        if not buffer.startswith(end, position):
            raise self._malformed(buffer, position, f"the link {_show(name)} does not end")
        return target, position + len(end)

    def _refill(self, rest: bytes) -> bytes:
        """Return *rest* with what comes behind it: a window at least, or all there is."""
        parts, size = [rest], len(rest)
        while size < _WINDOW:
            piece = self._next()
            if not piece:
                break
            parts.append(piece)
            size += len(piece)
        return b"".join(parts) if len(parts) > 1 else rest

    def _next(self) -> bytes:
        for piece in self._pieces:
            if piece:
                self._count += len(piece)
                if self._count > self._size:
                    raise self._error(f"has more bytes than the {self._size} of its NarSize")
                self._sha.update(piece)
                return piece
        self._ended = True
        return b""

    def _finish(self, nar_hash: Digest) -> None:
        rest = len(self._buffer) - self._position
        if rest or self._next():
            raise self._error("goes on behind its end")
        if self._count < self._size:
            raise self._error("ends too early")
        found = self._sha.hexdigest()
        if found != nar_hash.hex:
            raise self._error(f"has the hash sha256:{found}, not {nar_hash}: it was damaged or changed")

    def _bad_name(self, buffer: bytes, position: int, length: int, prefix: bytes, previous: bytes) -> StoreReadError:
        where = _show(prefix)
        if length > MAX_NAME:
            return self._error(f"has a name of {length} bytes in {where}; {MAX_NAME} is the most")
        name = buffer[position : position + length]
        if len(name) < length:
            return self._error(f"ends within a name in {where}")
        if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
            return self._error(f"has the name {name!r} in {where}, which is no name of a file")
        if name == previous:
            return self._error(f"has {_show(prefix + name)} twice")
        return self._error(f"is out of order: {_show(prefix + name)} comes after {_show(prefix + previous)}")

    def _malformed(self, buffer: bytes, position: int, problem: str) -> StoreReadError:
        return self._error(f"is malformed at byte {self._count - len(buffer) + position}: {problem}")

    def _error(self, problem: str) -> StoreReadError:
        if self._ended and self._count < self._size:
            # whatever looks wrong, this is why
            problem = f"is cut short: it has {self._count} bytes, not the {self._size} of its NarSize"
        return StoreReadError(f"{self._where} {problem}", hint="fetch it again, or from another cache")


def _kind(buffer: bytes, position: int, kinds: tuple[bytes, ...]) -> int:
    """Return which of *kinds* is at *position*, or -1."""
    for kind, text in enumerate(kinds):
        if buffer.startswith(text, position):
            return kind
    return -1


def _show(name: bytes) -> str:
    return "/" + name.decode(errors="backslashreplace")

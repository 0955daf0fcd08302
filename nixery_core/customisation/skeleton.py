"""What the image adds around the packages: system directories and the fixed files in them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from nixery_core.archive import ArchiveEntry
from nixery_core.customisation.users import User
from nixery_core.stores.reader import EntryType

DEFAULT_MODE = 0o755
"""Of every directory that nobody gave another mode."""
_FILE_MODE = 0o644
_LINK_MODE = 0o777


@attrs.frozen
class Content:
    """The bytes of a small file: gives them as often as asked, and pickles."""

    data: bytes

    def __call__(self) -> Iterator[bytes]:
        """Give the bytes as one piece."""
        return iter((self.data,))


def directory(name: bytes, mode: int = DEFAULT_MODE, uid: int = 0, gid: int = 0) -> ArchiveEntry:
    """Return the entry of a directory."""
    return ArchiveEntry(name=name, type=EntryType.DIRECTORY, mode=mode, uid=uid, gid=gid)


def link(name: bytes, target: bytes, uid: int = 0, gid: int = 0) -> ArchiveEntry:
    """Return the entry of a symbolic link."""
    return ArchiveEntry(name=name, type=EntryType.SYMLINK, mode=_LINK_MODE, uid=uid, gid=gid, target=target)


def file(name: bytes, data: bytes, mode: int = _FILE_MODE, uid: int = 0, gid: int = 0) -> ArchiveEntry:
    """Return the entry of a file with *data*."""
    return ArchiveEntry(
        name=name, type=EntryType.REGULAR, mode=mode, uid=uid, gid=gid, size=len(data), contents=Content(data)
    )


def directories(user: User) -> list[ArchiveEntry]:
    """Return the system directories: those of the Filesystem Hierarchy Standard 3.0 that programs count on.

    ``/tmp`` and ``/var/tmp`` are open to every user with the sticky bit; homes are closed to others.
    """
    entries = [
        directory(b"bin"),
        directory(b"etc"),
        directory(b"root", 0o700),
        directory(b"run"),
        directory(b"tmp", 0o1777),
        directory(b"usr"),
        directory(b"usr/bin"),
        directory(b"var"),
        directory(b"var/tmp", 0o1777),
    ]
    if user.home is not None:
        entries += [directory(b"home"), directory(user.home[1:].encode(), 0o700, user.uid, user.gid)]
    return entries

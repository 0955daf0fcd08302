"""Deterministic tar archives of store paths and other entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from nixery_core.stores.reader import EntryType

ARCHIVE_VERSION = 1
"""Changes whenever the bytes of an archive of the same entries change; enters every layer key."""


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

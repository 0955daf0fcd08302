"""Unnamed files of this machine, and whether it has room for them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from nixery_core.storage._files import write_all

PIECE = 64 << 20
"""Bytes of one file."""
KEPT_FREE = 1 << 30
"""Bytes of the disk that spooled blobs leave to others."""
_IN_MEMORY = {"tmpfs", "ramfs"}


class Spool:
    """Bytes in files without names: they are gone with their last handle, whatever happens; raises OSError.

    They are written once and read once, in order.  What was read gives its room back at once, and often
    never reached the disk.
    """

    def __init__(self) -> None:
        self._files: dict[int, IO[bytes]] = {0: self._file()}
        self.size = 0
        """Bytes that are in it, or were."""

    def append(self, data: memoryview) -> None:
        """Add all of *data*, or nothing that counts."""
        position = self.size
        while data:
            number, offset = divmod(position, PIECE)
            if number not in self._files:
                self._files[number] = self._file()
            piece = data[: PIECE - offset]
            fd = self._files[number].fileno()
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, piece)
            position, data = position + len(piece), data[len(piece) :]
        self.size = position

    def take(self, start: int, size: int) -> bytes:
        """Return at most *size* bytes from *start* on, and forget all that lies before them."""
        end, taken = min(start + size, self.size), []
        position = start
        while position < end:
            number, offset = divmod(position, PIECE)
            data = os.pread(self._files[number].fileno(), min(end - position, PIECE - offset), offset)
            if not data:
                raise OSError(errno.EIO, "a temporary file became shorter")
            taken.append(data)
            position += len(data)
        for number in [number for number in self._files if number < start // PIECE]:
            self._files.pop(number).close()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def close(self) -> None:
        """Give the room back."""
        while self._files:
            self._files.popitem()[1].close()

    @staticmethod
    def _file() -> IO[bytes]:
        # the standard library's own buffer would hide how much a full disk took
        return tempfile.TemporaryFile(buffering=0)


def has_room() -> bool:
    """Return whether large blobs may wait in the folder for temporary files: on a disk that is not nearly full."""
    try:
        folder = tempfile.gettempdir()
        return not _in_memory(folder) and shutil.disk_usage(folder).free >= KEPT_FREE
    except OSError:
        return False


def _in_memory(folder: str) -> bool:
    """Return whether files in *folder* take memory; False where that cannot be told."""
    device = Path(folder).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return False
    for line in mounts.splitlines():
        # proc(5): ID, parent, device, root, mount point, options, any number of fields, "-", type ...
        fields = line.split()
        if fields[2] == number and "-" in fields:
            return fields[fields.index("-") + 1] in _IN_MEMORY
    return False

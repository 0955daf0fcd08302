"""Which programs of a closure run on the image's platform."""

from __future__ import annotations

from collections.abc import Iterable

from nixery_core.customisation._trees import File, StoreTrees
from nixery_core.model.platform import Platform
from nixery_core.stores.reader import StoreReader

_HEAD_BYTES = 256
"""Enough for an ELF header's e_machine, and as much of a ``#!`` line as Linux reads (execve(2))."""
_MAX_INTERPRETERS = 4
"""Linux gives up after four interpreters of interpreters (binfmt_script)."""

SHELLS = (
    ("bash-interactive", (b"bin/sh", b"bin/bash")),
    ("bash", (b"bin/sh", b"bin/bash")),
    ("dash", (b"bin/sh", b"bin/dash")),
    ("busybox", (b"bin/sh", b"bin/ash")),
)
"""What may serve as ``/bin/sh``: package names, best first, and their programs."""
ENVS = (
    ("coreutils", (b"bin/env",)),
    ("coreutils-full", (b"bin/env",)),
    ("uutils-coreutils-noprefix", (b"bin/env",)),
    ("busybox", (b"bin/env",)),
)
"""What may serve as ``/usr/bin/env``."""


class Programs:
    """Looks into programs of a closure, for one platform."""

    def __init__(self, trees: StoreTrees, reader: StoreReader, platform: Platform) -> None:
        self._trees = trees
        self._reader = reader
        self._platform = platform

    def runs(self, path: bytes) -> bool:
        """Tell whether the absolute *path* leads to a program of the closure that the platform can run."""
        for _ in range(_MAX_INTERPRETERS + 1):
            place = self._trees.resolve(path)
            if place is None or not isinstance(place.node, File) or not place.node.executable:
                return False
            head = self._reader.read_head(place.store_path, place.name, _HEAD_BYTES)
            interpreter = _interpreter(head)
            if interpreter is None:
                return is_elf_for(head, self._platform)
            path = interpreter
        return False

    def head_runs(self, head: bytes) -> bool:
        """Tell whether a program that begins with *head* runs: on the platform, or by an interpreter that does."""
        interpreter = _interpreter(head[:_HEAD_BYTES])
        return is_elf_for(head, self._platform) if interpreter is None else self.runs(interpreter)

    def find(self, choices: Iterable[tuple[str, tuple[bytes, ...]]]) -> bytes | None:
        """Return the absolute path of the first program of *choices* that the closure has and that runs."""
        for package_name, names in choices:
            for store_path in self._trees.paths_named(package_name):
                for name in names:
                    path = str(store_path).encode() + b"/" + name
                    if self.runs(path):
                        return path
        return None


def is_elf(head: bytes) -> bool:
    """Tell whether *head* begins an ELF file."""
    return head[:4] == b"\x7fELF" and head[5:6] in (b"\1", b"\2") and len(head) >= 20


def is_elf_for(head: bytes, platform: Platform) -> bool:
    r"""Tell whether *head* begins an ELF file for *platform* (System V ABI, "ELF Header": EI_DATA, e_machine).

    >>> is_elf_for(b"\x7fELF\x02\x01".ljust(18, b"\0") + b"\x3e\0", Platform.parse("amd64"))
    True
    """
    if not is_elf(head):
        return False
    return int.from_bytes(head[18:20], "little" if head[5] == 1 else "big") == platform.elf_machine


def _interpreter(head: bytes) -> bytes | None:
    if not head.startswith(b"#!"):
        return None
    words = head[2:].split(b"\n", 1)[0].split(maxsplit=1)
    return words[0] if words else b""

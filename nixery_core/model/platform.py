"""Nix systems and OCI platforms, in one table."""

from __future__ import annotations

import attrs

from nixery_core.errors import InvalidPlatform, nearest

# ELF e_machine from the System V ABI's registry: what a program for the platform must say of itself.
_TABLE: tuple[tuple[str, str, str, str | None, int], ...] = (
    ("x86_64-linux", "linux", "amd64", None, 62),
    ("aarch64-linux", "linux", "arm64", None, 183),
    ("i686-linux", "linux", "386", None, 3),
    ("armv7l-linux", "linux", "arm", "v7", 40),
    ("armv6l-linux", "linux", "arm", "v6", 40),
    ("riscv64-linux", "linux", "riscv64", None, 243),
    ("powerpc64le-linux", "linux", "ppc64le", None, 21),
    ("s390x-linux", "linux", "s390x", None, 22),
    ("loongarch64-linux", "linux", "loong64", None, 258),
    ("mips64el-linux", "linux", "mips64le", None, 8),
)


@attrs.frozen(order=True)
class Platform:
    """What an image runs on: one Nix system and the OCI platform that means the same.

    Source: image-spec, image-index.md, "platform"; GOARCH and GOARM values.

    >>> Platform.parse("aarch64-linux") == Platform.parse("linux/arm64/v8") == Platform.parse("arm64")
    True
    >>> str(Platform.parse("armv7l-linux"))
    'linux/arm/v7'
    """

    system: str
    """Nix's name: ``x86_64-linux``."""
    os: str
    """``linux``."""
    architecture: str
    """A GOARCH value: ``amd64``."""
    variant: str | None
    """``v7`` where the architecture needs one."""
    elf_machine: int
    """``e_machine`` of its ELF files."""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read a Nix system, ``os/architecture[/variant]``, or an architecture alone; raises InvalidPlatform."""
        wanted = text.removeprefix("linux/")
        wanted = "arm64" if wanted == "arm64/v8" else "arm/v7" if wanted == "arm" else wanted
        for row in _TABLE:
            platform = cls(*row)
            if wanted in (platform.system, str(platform).removeprefix("linux/")):
                return platform
        known = [name for row in _TABLE for name in (row[0], str(cls(*row)))]
        close = nearest(text, known) or tuple(known[:4])
        raise InvalidPlatform(f"{text!r} is not a known platform", hint=f"try {' or '.join(close)}")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


AMD64 = Platform.parse("x86_64-linux")
ARM64 = Platform.parse("aarch64-linux")

"""The images that ``kill_builds.py`` builds, and where they go."""

from __future__ import annotations

import os
import random
from typing import Any

import attrs
from killed_process import Tell

from nixery_core.builder import ImageBuilder
from nixery_core.events import BuildEvent
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.backend import Backend
from nixery_core.storage.part_upload import FIRST_PART
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

MIB = 1 << 20
READY, BUILT = "ready", "built"
"""What a build tells when it begins, and when the image has its name."""
EVENT = "event "
"""What goes before the name of each of its events."""


@attrs.frozen
class Storage:
    """Where images go; opened by each process for itself."""

    url: str
    options: dict[str, Any]

    def open(self) -> Backend:
        """Return its backend."""
        return open_backend(self.url, **self.options)

    @property
    def directory(self) -> str | None:
        """The directory that it is, or None for a bucket."""
        return None if "://" in self.url else os.path.abspath(self.url)  # noqa: PTH100 - compared with plain texts

    def by_turns(self) -> dict[str, Storage]:
        """Return the same storage for each way in which its backend can send large blobs, by the name of the way."""
        if not self.url.startswith(("s3://", "s3a://")) or "large_blobs" in self.options:
            return {str(self.options.get("large_blobs", "default")): self}
        from nixery_backend_s3 import _backend

        ways = getattr(_backend, "LARGE_BLOBS", ("stage", "spool"))
        return {way: attrs.evolve(self, options={**self.options, "large_blobs": way}) for way in ways}


@attrs.frozen
class Source:
    """A source at a revision."""

    revision: str

    def pin(self, tag: str) -> Pin:
        """Return the revision."""
        return Pin(kind="memory", url="memory", revision=self.revision, fetch={})


@attrs.frozen
class Images:
    """All images of a run: what is in them follows from the seed."""

    seed: int
    sizes: tuple[int, int]
    """The least and the most MiB of a huge layer, which does not compress."""

    def target(self, number: int, *, huge: bool) -> Target:
        """Return image *number*, with a huge layer or without one."""
        size = random.Random(f"huge {self.seed} {number}").randint(*(mib * MIB for mib in self.sizes))
        return Target(self.seed, number, size if huge else 0)


@attrs.frozen
class Target:
    """An image to build: another one for each number."""

    seed: int
    number: int
    huge: int
    """Bytes of its largest layer, which does not compress; 0 where it has none."""

    def build(self, storage: Storage, tell: Tell) -> dict[str, str]:
        """Build it; return what every byte of it hashes to, if they are there: ``fsck`` reads them."""

        def on_event(event: BuildEvent) -> None:
            tell(EVENT + type(event).__name__)

        backend = storage.open()
        realiser = MemoryRealiser(self._packages())
        source = Source(f"{self.seed}-{self.number}")
        builder = ImageBuilder(source, backend, realiser=realiser, codec="gzip:1", workers=2)
        name = "large/middle/small" + ("/huge" if self.huge else "")
        tell(READY)
        image = builder.build(ImageSpec.parse(name, tag=f"t{self.number}"), on_event=on_event)
        tell(BUILT)
        return {"manifest": str(image.descriptor.digest), "cached": str(image.cached)}

    @property
    def full_parts(self) -> int:
        """How many parts are sent at least of its largest layer."""
        return self.huge // FIRST_PART

    def _packages(self) -> dict[str, MemoryPackage]:
        """Return a library that all images share, and some programs for this one."""
        shared = _tree(random.Random(self.seed), 24, 4 * MIB)
        library = MemoryPackage(path=StorePath("a" * 32, "library"), tree={"lib": shared})
        generator = random.Random(f"{self.seed} {self.number}")
        found = {"library": library}
        for name, size in (("large", 3 * MIB), ("middle", MIB), ("small", 4000)):
            content = {"bin": {name: b"program"}, "share": _tree(generator, 12, size)}
            found[name] = MemoryPackage(path=_path(generator, name), tree=content, references=(library.path,))
        if self.huge:
            content = {"data": generator.randbytes(self.huge)}
            found["huge"] = MemoryPackage(path=_path(generator, "huge"), tree=content, references=(library.path,))
        return found


def _path(generator: random.Random, name: str) -> StorePath:
    return StorePath("".join(generator.choices("0123456789abcdfghijklmnpqrsvwxyz", k=32)), name)


def _tree(generator: random.Random, files: int, size: int) -> dict[str, bytes]:
    """Return files of *size* bytes together, half of which compresses."""
    return {f"file{number}": (generator.randbytes(size // files // 2) * 2) for number in range(files)}

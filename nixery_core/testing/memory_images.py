"""A builder of small images in memory, for tests of what is made with images."""

from __future__ import annotations

import attrs

from nixery_core.builder import ImageBuilder
from nixery_core.events import EventCallback, ignore_events
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.backend import Backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser


@attrs.frozen
class MemorySource:
    """A source whose every tag is one revision, or moves where that is None."""

    revision: str | None = "r1"

    def pin(self, tag: str) -> Pin:  # noqa: ARG002 (there is one revision)
        """Return the one pin."""
        return Pin(kind="memory", url="https://example.org/set", revision=self.revision, fetch={})


def memory_packages(*names: str) -> dict[str, MemoryPackage]:
    """Return a package set of small packages, each of one file and a store path of its own."""
    letters = "0123456789abcdfghijklmnpqrsvwxyz"
    return {
        name: MemoryPackage(
            path=StorePath(letters[number // 32 % 32] + letters[number % 32] * 31, f"{name[:100]}-1"),
            tree={"bin": {name: name.encode() * 100}},
        )
        for number, name in enumerate(names)
    }


def memory_builder(
    backend: Backend, *names: str, source: MemorySource | None = None, on_event: EventCallback = ignore_events
) -> ImageBuilder:
    """Return a builder of images of these packages, which needs no Nix.

    >>> from nixery_core.model.image import ImageSpec
    >>> from nixery_core.storage.plugins import open_backend
    >>> image = memory_builder(open_backend("memory://images"), "git").build(ImageSpec.parse("git"))
    >>> len(image.layers)
    2
    """
    return ImageBuilder(
        source or MemorySource(), backend, realiser=MemoryRealiser(memory_packages(*names)), on_event=on_event
    )

"""What an embedder can choose, beside the builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from nixery_core.model.image import ImageSpec

SpecFactory: TypeAlias = Callable[[str, str], ImageSpec]
"""Makes of a name and a tag what is built; raises InvalidName where a name means nothing."""


def parse_spec(name: str, tag: str) -> ImageSpec:
    """Return what the name means to Nixery: meta-packages, then packages."""
    return ImageSpec.parse(name, tag=tag)

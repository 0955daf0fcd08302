"""The interface between package names and store paths with content: Nix, or a binary cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.events import EventCallback
from nixery_core.model.closure import Closure
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.sources import Pin
from nixery_core.stores.reader import StoreReader


@attrs.frozen(kw_only=True)
class Realisation:
    """Store paths that exist, for as long as somebody holds them."""

    closure: Closure
    """The runtime closure of the requested outputs."""
    reader: StoreReader
    """Gives the content of every path of the closure."""


class Realiser(Protocol):
    """Turns names into store paths whose content can be read."""

    @property
    def id(self) -> str:
        """Names the rules by which names become store paths; enters the cache key of images."""
        ...

    def evaluate(
        self,
        pin: Pin,
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,
        *,
        on_event: EventCallback,
        cancellation: Cancellation,
    ) -> tuple[ResolvedPackage, ...]:
        """Look up every name; raises PackageError for all that cannot be used, and other NixErrors.

        The result is sorted by attribute path and holds each attribute once.  Optional names
        that are not in the package set are left out with an event.
        """
        ...

    def realise(
        self, packages: Sequence[ResolvedPackage], *, on_event: EventCallback, cancellation: Cancellation
    ) -> AbstractContextManager[Realisation]:
        """Build or fetch the outputs, and hold them until the context ends; raises NixError."""
        ...


@runtime_checkable
class RealiserSource(Protocol):
    """A package source that knows best how its names become store paths; an optional capability of sources."""

    def realiser(self) -> Realiser:
        """Return the realiser for the pins of this source."""
        ...

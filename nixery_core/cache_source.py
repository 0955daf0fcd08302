"""Packages from binary caches: names by an index, content from the caches, no Nix anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs

from nixery_core._platform_choice import PlatformChoice
from nixery_core._remembered import Remembered
from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidDocument, InvalidTag, PackageProblem, ProblemKind, RevisionNotFound, SourceError
from nixery_core.events import EventCallback, ignore_events
from nixery_core.index.package_index import Choose, IndexSnapshot, LookedUp, PackageIndex, explicit_package
from nixery_core.index.selection import Asked, select_packages
from nixery_core.model.names import check_tag
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.sources import DEFAULT_TAG, Pin
from nixery_core.stores.binary_caches import BinaryCaches
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.realiser import Realisation

RULES = "binary-cache 1"
"""Names the rules by which names become store paths; changes when they do."""

_KIND = "cache"
_UNFREE_HINT = "the index was made without them; make one with: nixery-core index --allow-unfree"
_SNAPSHOTS = 4


@attrs.frozen
class BinaryCacheSource:
    """A package source that needs no Nix: an index says what names are, binary caches have the content.

    An ImageBuilder of it uses it for everything, so it takes no realiser.  The revision of its images
    is that of the index; without an index, images are made of store paths that are named directly.
    Which caches were asked is no part of the identity of an image: a store path is the same in all.

    >>> from nixery_core.stores.binary_cache import BinaryCache
    >>> source = BinaryCacheSource(BinaryCache("https://cache.nixos.org"))
    >>> source.pin("latest").kind
    'store-paths'
    """

    caches: BinaryCaches = attrs.field(converter=BinaryCaches)
    """One cache or several; see :class:`~nixery_core.stores.binary_caches.BinaryCaches`."""
    index: PackageIndex | None = None
    """Where names are looked up: IndexFile, ChannelIndex, HydraIndex, or your own."""
    _snapshots: Remembered = attrs.field(factory=lambda: Remembered(_SNAPSHOTS), init=False, eq=False, repr=False)

    def pin(self, tag: str) -> Pin:
        """Resolve the tag with the index; without one, the only tag is ``latest``."""
        if self.index is None:
            if check_tag(tag) != DEFAULT_TAG:
                raise InvalidTag(
                    f"store paths that are named directly have no tag {tag!r}", hint=f"use the tag {DEFAULT_TAG}"
                )
            # what is named by its store path never changes
            return Pin(kind="store-paths", url="/nix/store", revision="store-paths", fetch={"type": _KIND, "tag": tag})
        snapshot = self.index.snapshot(tag)
        pin = Pin(
            kind=f"{_KIND}-{self.index.kind}",
            url=self.index.url,
            revision=snapshot.revision,
            fetch={"type": _KIND, "tag": tag},
        )
        self._snapshots.get((tag, pin.revision), float("inf"), lambda: snapshot)
        return pin

    def realiser(self) -> CacheRealiser:
        """Return what turns the names of this source into store paths with content."""
        return CacheRealiser(self)

    def snapshot(self, pin: Pin) -> IndexSnapshot:
        """Return what the index was at *pin*; raises RevisionNotFound where it has moved on since."""
        if self.index is None or pin.fetch.get("type") != _KIND:
            raise SourceError(f"{pin.describe()} is no pin of this source", hint="take the pin of source.pin(tag)")
        index, tag = self.index, str(pin.fetch["tag"])

        def again() -> IndexSnapshot:
            # in another process, or after many others
            found = index.snapshot(tag)
            if found.revision != pin.revision:
                raise RevisionNotFound(
                    f"the index was {pin.describe()} and is at {found.revision} now", hint="resolve the tag again"
                )
            return found

        return self._snapshots.get((tag, pin.revision), float("inf"), again)


@attrs.frozen
class CacheRealiser:
    """Turns names into store paths whose content is in binary caches; a Realiser."""

    source: BinaryCacheSource

    @property
    def id(self) -> str:
        """Names the rules; enters the cache key of images."""
        return RULES

    def evaluate(
        self,
        pin: Pin,
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[ResolvedPackage, ...]:
        """Look every name up in the index; nothing is evaluated, and the caches are hardly asked.

        Raises:
            InvalidName: A name is no attribute path.
            PackageError: Packages cannot be used; all of them are listed.
            SourceError: The index cannot be read; RevisionNotFound where it has moved on since the pin.
            StoreReadError: A cache failed that had to tell store paths of one name apart.
            Cancelled: The call was cancelled.
        """
        token = cancellation or Cancellation()
        token.check()
        asked = Asked.of(packages, optional)
        choose = PlatformChoice(self.source.caches, token)
        looked = dict(zip(asked.names, self._look_up(pin, asked.names, platform, choose, token), strict=True))
        return select_packages(asked, looked, on_event=on_event, unfree_hint=_UNFREE_HINT)

    @contextmanager
    def realise(
        self,
        packages: Sequence[ResolvedPackage],
        *,
        on_event: EventCallback = ignore_events,  # noqa: ARG002 (nothing is built)
        cancellation: Cancellation | None = None,
    ) -> Iterator[Realisation]:
        """Give the closure of the outputs as the caches tell of it; nothing of its content is fetched here.

        Raises:
            PathsNotFound: No cache has some of the paths; it lists every one.
            UntrustedPath: Nobody who is trusted vouches for a path.
            BinaryCacheError: A cache cannot be read.
            Cancelled: The call was cancelled.
        """
        roots = [output.path for package in packages for output in package.outputs]
        closure = cached_closure(self.source.caches, roots, cancellation=cancellation)
        yield Realisation(closure=closure, reader=BinaryCacheReader(self.source.caches))

    def _look_up(
        self, pin: Pin, names: Sequence[str], platform: Platform, choose: Choose, token: Cancellation
    ) -> Iterable[LookedUp]:
        if self.source.index is None:
            return [explicit_package(name) or _no_index(name) for name in names]
        try:
            return self.source.snapshot(pin).look_up(names, platform, choose=choose, cancellation=token)
        except InvalidDocument as error:
            raise SourceError(error.message, hint=error.hint) from error


def _no_index(name: str) -> PackageProblem:
    return PackageProblem(name, ProblemKind.NOT_FOUND, "there is no index, so packages are named by their store paths")

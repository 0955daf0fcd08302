"""The interface of everything that knows the store paths of packages by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidStorePath, PackageProblem
from nixery_core.model.package import PackageOutput, ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath

LookedUp = ResolvedPackage | PackageProblem
"""What became of a name."""

Choose = Callable[[Sequence[StorePath], Platform], StorePath | None]
"""Tells which of several store paths of one name is the one for a platform, or None where that cannot be told."""

_EXPLICIT = re.compile(r"[0-9abcdfghijklmnpqrsvwxyz]{32}-.+")


class IndexSnapshot(Protocol):
    """A package index at one point in time."""

    @property
    def revision(self) -> str | None:
        """The immutable revision, or None where the content can change under our hands."""
        ...

    def look_up(
        self, names: Sequence[str], platform: Platform, *, choose: Choose, cancellation: Cancellation
    ) -> Sequence[LookedUp]:
        """Return for each name, in the order asked, its package or why there is none; raises SourceError.

        An index that knows store paths by name alone lets *choose* decide between several of one name.
        Names mean what they mean to Nix: the literal attribute first, then the one behind ``_``
        for names that begin with a digit, then one that differs in case alone.
        """
        ...


class PackageIndex(Protocol):
    """Knows the store paths of packages without evaluating them; any object with these methods is an index.

    An index pickles, and is used by several threads at once.
    """

    @property
    def kind(self) -> str:
        """Which kind of index; part of the identity of images."""
        ...

    @property
    def url(self) -> str:
        """Where it is; part of the identity of images.  May hold secrets."""
        ...

    def snapshot(self, tag: str) -> IndexSnapshot:
        """Resolve the tag of an image; raises InvalidTag, RevisionNotFound or SourceError.

        What a moving name was resolved to may be remembered for a while.
        """
        ...


def explicit_package(name: str) -> ResolvedPackage | None:
    """Return the package of a name that is the base name of a store path, or None for any other name.

    >>> explicit_package("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15").outputs[0].path.package_name
    'bash'
    >>> explicit_package("bash") is None
    True
    """
    if not _EXPLICIT.fullmatch(name):
        return None
    try:
        path = StorePath.parse(name)
    except InvalidStorePath:
        return None
    return ResolvedPackage(name=name, attribute=name, derivation=None, outputs=(PackageOutput(name="out", path=path),))


def choose_none(paths: Sequence[StorePath], platform: Platform) -> None:
    """Never tell store paths of one name apart: they stay ambiguous."""

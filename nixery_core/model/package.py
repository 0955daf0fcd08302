"""A package name after it was looked up in a package set."""

from __future__ import annotations

import attrs

from nixery_core.model.storepath import StorePath

DEFAULT_PRIORITY = 5
"""``meta.priority`` where a package says nothing (nixpkgs: lib/meta.nix)."""


@attrs.frozen(kw_only=True)
class PackageOutput:
    """One output of a package that an image links."""

    name: str
    """``out``, ``bin``, ``man`` ..."""
    path: StorePath


@attrs.frozen(kw_only=True)
class ResolvedPackage:
    """A package of an image: what the name stands for and what is linked of it."""

    name: str
    """The name as it was asked for."""
    attribute: str
    """The attribute path in the package set that the name stands for."""
    derivation: str | None
    """Store path of the derivation that builds it; None where there is only a binary cache."""
    outputs: tuple[PackageOutput, ...]
    """The outputs to install, in the package's own order (``meta.outputsToInstall``)."""
    priority: int = DEFAULT_PRIORITY
    """Lower wins where two packages have a file of one name (``meta.priority``)."""


def package_priority(value: object) -> int:
    """Return ``meta.priority`` as a number; some packages of nixpkgs have it as a text, most have none.

    >>> package_priority("-10"), package_priority(None)
    (-10, 5)
    """
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        return int(value)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else DEFAULT_PRIORITY

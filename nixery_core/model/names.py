"""Image names, tags and attribute paths: their grammars, and what Nixery's meta-packages mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from nixery_core.errors import InvalidName, InvalidTag
from nixery_core.model.platform import AMD64, ARM64, Platform

MAX_NAME = 255
"""Most characters of an image name that clients accept."""

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_'+-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_'+-]*)*")


@attrs.frozen(kw_only=True)
class MetaPackage:
    """A word at the start of an image name that stands for packages or for a platform."""

    packages: tuple[str, ...] = ()
    """Packages that the package set must have."""
    optional: tuple[str, ...] = ()
    """Packages that are added where the package set has them."""
    platform: Platform | None = None
    """The platform that the word asks for."""


META_PACKAGES: Mapping[str, MetaPackage] = MappingProxyType(
    {
        "shell": MetaPackage(packages=("bashInteractive", "coreutils"), optional=("moreutils", "nano")),
        "arm64": MetaPackage(platform=ARM64),
        "amd64": MetaPackage(platform=AMD64),
    }
)
"""The meta-packages that Nixery knows, and ``amd64``."""

IMPLIED_PACKAGES = ("cacert", "iana-etc")
"""What Nixery adds to every image; here it is added where the package set has it."""


@attrs.frozen(kw_only=True)
class ParsedName:
    """What an image name asks for."""

    packages: tuple[str, ...]
    optional: tuple[str, ...]
    platform: Platform


def check_name(name: str) -> str:
    """Return *name* if it fits the grammar of image names; raises InvalidName.

    Source: distribution-spec 1.1, "Pulling manifests", ``<name>``.

    >>> check_name("shell/git/python3packages.six")
    'shell/git/python3packages.six'
    """
    if len(name) > MAX_NAME:
        raise InvalidName(f"the image name has {len(name)} characters, clients accept {MAX_NAME}: {name[:40]}...")
    for component in name.split("/"):
        if not _COMPONENT.fullmatch(component):
            problem = "it is empty" if not component else f"{component!r} is not allowed"
            raise InvalidName(
                f"{name!r} is not an image name: {problem}",
                hint="components are lower-case letters and digits, joined by '.', '_', '__' or '-'"
                + ("; upper-case attributes are found by their lower-case names" if name != name.lower() else ""),
            )
    return name


def check_tag(tag: str) -> str:
    """Return *tag* if it fits the grammar of tags; raises InvalidTag.

    >>> check_tag("nixos-24.05")
    'nixos-24.05'
    """
    if not _TAG.fullmatch(tag):
        raise InvalidTag(
            f"{tag!r} is not a tag",
            hint="a tag is up to 128 letters, digits, '_', '.' and '-', and starts with none of '.-'",
        )
    return tag


def check_attribute(attribute: str) -> str:
    """Return *attribute* if it can name a package: an attribute path with dots; raises InvalidName.

    >>> check_attribute("python3Packages.six")
    'python3Packages.six'
    """
    if not _ATTRIBUTE.fullmatch(attribute):
        raise InvalidName(
            f"{attribute!r} is not the name of a package",
            hint="a package is an attribute path such as git or python3Packages.numpy",
        )
    return attribute


def parse_name(name: str, meta_packages: Mapping[str, MetaPackage] = META_PACKAGES) -> ParsedName:
    """Read an image name as Nixery does: meta-packages first, then packages.

    Raises InvalidName where the grammar is broken, no package is named, or two platforms are asked for.

    >>> parse_name("arm64/shell/git").packages
    ('bashInteractive', 'coreutils', 'git')
    """
    words = check_name(name).split("/")
    metas = 0
    while metas < len(words) and words[metas] in meta_packages:
        metas += 1
    asked = [meta_packages[word] for word in words[:metas]]
    for word in words[metas:]:
        if word in meta_packages:
            raise InvalidName(f"{name!r}: the meta-package {word} comes after a package", hint=f"put {word} first")
    platforms = {meta.platform for meta in asked if meta.platform is not None}
    if len(platforms) > 1:
        raise InvalidName(f"{name!r} asks for two platforms", hint="name one of them")
    packages = [package for meta in asked for package in meta.packages] + words[metas:]
    if not packages:
        raise InvalidName(f"{name!r} names no package", hint=f"add one: {name}/git")
    return ParsedName(
        packages=tuple(sorted(set(packages))),
        optional=tuple(sorted({package for meta in asked for package in meta.optional})),
        platform=platforms.pop() if platforms else AMD64,
    )

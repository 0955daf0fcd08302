"""What a name means in a package set whose attributes are known: the rules of nix/resolve.nix in Python."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from nixery_core.errors import PackageProblem, ProblemKind, nearest

_Node = dict[str, Any]


@attrs.frozen
class Found:
    """The package that a name leads to."""

    attribute: str
    """Its attribute path."""
    rest: tuple[str, ...] = ()
    """Components of the name behind it: ``man`` of ``curl.man``."""


class NameTable:
    """The attribute paths of all packages of a set.

    >>> table = NameTable(["git", "python3Packages.six", "_1password"])
    >>> table.find("python3packages.six").attribute, table.find("1password").attribute
    ('python3Packages.six', '_1password')
    >>> table.find("gti").describe()
    'gti: not found; did you mean git?'
    """

    def __init__(self, attributes: Iterable[str]) -> None:
        self._packages = frozenset(attributes)
        self._root: _Node = {}
        for attribute in self._packages:
            node = self._root
            for component in attribute.split("."):
                node = node.setdefault(component, {})

    def __contains__(self, attribute: object) -> bool:
        return attribute in self._packages

    def __iter__(self) -> Iterator[str]:
        return iter(self._packages)

    def __len__(self) -> int:
        return len(self._packages)

    def find(self, name: str) -> Found | PackageProblem:
        """Return the package that *name* leads to, or the problem with it."""
        components = name.split(".")
        node, path = self._root, list[str]()
        for number, component in enumerate(components):
            attribute = ".".join(path)
            if attribute in self._packages and component not in node:
                return Found(attribute, tuple(components[number:]))
            found = meanings(component, node, self._top if node is self._root else None)
            if not found:
                return not_found(name, attribute, component, tuple(node))
            if len(found) > 1:
                rest = components[number + 1 :]
                candidates = tuple(".".join([*path, meaning, *rest]) for meaning in found)
                return PackageProblem(name, ProblemKind.AMBIGUOUS, candidates=candidates)
            path.append(found[0])
            node = node[found[0]]
        attribute = ".".join(path)
        if attribute not in self._packages:
            return not_a_package(name, attribute, "set")
        return Found(attribute)

    @functools.cached_property
    def _top(self) -> dict[str, list[str]]:
        return _folded(self._root)

    def __getstate__(self) -> frozenset[str]:
        return self._packages

    def __setstate__(self, packages: frozenset[str]) -> None:
        # a tree of small dictionaries is quicker made than pickled
        NameTable.__init__(self, packages)


def meanings(component: str, names: Iterable[str], folded: dict[str, list[str]] | None = None) -> list[str]:
    """Return the names in *names* that *component* can mean, best first; more than one is a collision.

    *folded* is what the names are in lower case, where the caller has it.

    >>> meanings("six", ["Six", "SIX"])
    ['SIX', 'Six']
    """
    known = names if isinstance(names, (dict, frozenset, set)) else set(names)
    if component in known:
        return [component]
    digit = component[:1].isdecimal() and component.isascii()
    escaped = f"_{component}"
    if digit and escaped in known:
        return [escaped]
    table = _folded(known) if folded is None else folded
    return table.get(component.lower(), []) + (table.get(escaped.lower(), []) if digit else [])


def not_found(name: str, attribute: str, component: str, known: Sequence[str]) -> PackageProblem:
    """Return the problem of a name whose search ended in the set *attribute*, which has the names *known*."""
    close = nearest(component, tuple(known))
    if not attribute:
        return PackageProblem(name, ProblemKind.NOT_FOUND, candidates=close)
    return PackageProblem(
        name,
        ProblemKind.NOT_FOUND,
        f"{attribute} has no {component}",
        candidates=tuple(f"{attribute}.{candidate}" for candidate in close),
    )


_TYPES = {
    "lambda": "a function",
    "set": "a set of attributes",
    "list": "a list",
    "string": "a string",
    "path": "a path",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
}


def type_text(nix_type: str) -> str:
    """Return what ``builtins.typeOf`` says, for a person.

    >>> type_text("lambda")
    'a function'
    """
    return _TYPES.get(nix_type, "something else")


def not_a_package(name: str, attribute: str, nix_type: str) -> PackageProblem:
    """Return the problem of a name that leads to something else than a package."""
    reason = f"it is {type_text(nix_type)}"
    if nix_type == "set":
        reason += f"; name a package in it: {attribute}.<package>"
    return PackageProblem(name, ProblemKind.NOT_A_PACKAGE, reason)


def _folded(names: Iterable[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    # Nix has its attributes sorted
    for name in sorted(names):
        table.setdefault(name.lower(), []).append(name)
    return table

"""The symlink forest: the files of the requested packages under the root of the image.

The rules are those of nixpkgs' ``buildEnv`` (pkgs/build-support/buildenv/builder.pl) with four
differences: top-level directories, ``/etc`` and ``/var`` are real directories, because containers
and engines write there; a collision is decided and reported instead of failing the build; only a
``log`` at the top level, where builders leave it, is left out, not every file of that name; and
``propagated-user-env-packages`` is not followed, because an image holds what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import attrs

from nixery_core.customisation._trees import Directory, Link, Node, Place, StoreTrees
from nixery_core.errors import InvalidClosure
from nixery_core.events import EventCallback, FileCollision, PackageNotLinked
from nixery_core.model.closure import Closure
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.storepath import StorePath

# Build-time notes, and databases that are only right when they are made over all packages.
_IGNORED = re.compile(
    rb"(?:nix-support|propagated-build-inputs|log)|(?:.*/)?(?:perllocal\.pod|info/dir)|share/mime/(?!packages(?:/|$)).*",
    re.S,
)
_ENGINE_OWNED = frozenset((b"nix", b"dev", b"proc", b"sys"))
"""The store, and what engines mount: files of packages there would hide or be hidden."""
_MUTABLE = (b"etc/", b"var/")


@attrs.frozen
class _Candidate:
    path: bytes
    """Absolute path in the store; what a link would point to."""
    node: Node


@attrs.frozen
class _Open:
    """A real directory whose names are still to be chosen."""

    name: bytes
    merged: Sequence[_Candidate]
    """The directories of packages that meet here, the winner first."""
    above: frozenset[bytes]
    """Paths of these directories and of all that lead to them."""


def linked_outputs(packages: Iterable[ResolvedPackage], closure: Closure) -> list[StorePath]:
    """Return the outputs to link, each once, the winner of a collision first.

    A lower priority number wins, then the order of the packages, then that of the outputs.
    Raises InvalidClosure where an output is not in the closure.
    """
    ranked = sorted(packages, key=lambda package: package.priority)
    outputs = dict.fromkeys(output.path for package in ranked for output in package.outputs)
    for path in outputs:
        if path not in closure:
            raise InvalidClosure(
                f"{path} is to be linked but is not in the closure", hint="make the closure from all outputs to install"
            )
    return list(outputs)


def link_forest(
    outputs: Sequence[StorePath],
    trees: StoreTrees,
    *,
    real: AbstractSet[bytes],
    replaced: AbstractSet[bytes],
    on_event: EventCallback,
) -> dict[bytes, bytes | None]:
    """Lay the files of *outputs* over each other.

    Args:
        outputs: Store paths, the winner of a collision first.
        trees: What they hold.
        real: Names that are directories of the image, whatever packages have there.
        replaced: Names that the image fills itself; nothing of packages comes there or below.
        on_event: Gets a FileCollision for every file that lost its place and a PackageNotLinked
            for every output that is a file.

    Returns: For every name, relative to the root of the image, the absolute target of a symbolic
        link, or None for a real directory.
    """
    roots = []
    for output in outputs:
        place = _resolve(_Candidate(str(output).encode(), trees.tree(output)), trees)
        if place is None or not isinstance(place.node, Directory):
            on_event(PackageNotLinked(store_path=str(output)))
        else:
            roots.append(_Candidate(place.path, place.node))

    forest: dict[bytes, bytes | None] = {}
    open_directories = [_Open(b"", roots, frozenset(root.path for root in roots))]
    while open_directories:
        parent = open_directories.pop()
        for base, candidates in sorted(_children(parent.merged).items()):
            name = parent.name + b"/" + base if parent.name else base
            if name in replaced or _IGNORED.fullmatch(name):
                continue
            if len(candidates) == 1 and not (name in real or _stays_real(name)):
                forest[name] = candidates[0].path
                continue
            if name in _ENGINE_OWNED:
                _report(name, b"/" + name, candidates, on_event)
                continue
            places = [(candidate, _resolve(candidate, trees, parent.above)) for candidate in candidates]
            link, merged = _choose(name, places, name in real, on_event)
            forest[name] = link
            if merged:
                above = parent.above.union(directory.path for directory in merged)
                open_directories.append(_Open(name, merged, above))
    return forest


def _choose(
    name: bytes, places: Sequence[tuple[_Candidate, Place | None]], is_real: bool, on_event: EventCallback
) -> tuple[bytes | None, list[_Candidate]]:
    """Return the target of a link, or None and the directories whose files meet under *name*."""
    distinct: dict[bytes, tuple[_Candidate, Place | None]] = {}
    # a link that leads nowhere gives way to anything that is there
    for candidate, place in sorted(places, key=lambda pair: pair[1] is None):
        distinct.setdefault(candidate.path if place is None else place.path, (candidate, place))

    winner, place = next(iter(distinct.values()))
    if not is_real and (place is None or not isinstance(place.node, Directory)):
        _report(name, winner.path, [candidate for candidate, _ in distinct.values()][1:], on_event)
        return winner.path, []

    merged, rejected = [], []
    for candidate, place in distinct.values():
        if place is not None and isinstance(place.node, Directory):
            merged.append(_Candidate(place.path, place.node))
        else:
            rejected.append(candidate)
    _report(name, b"/" + name if is_real else winner.path, rejected, on_event)
    if len(merged) == 1 and not is_real and not _stays_real(name):
        return winner.path, []
    return None, merged


def _children(directories: Iterable[_Candidate]) -> dict[bytes, list[_Candidate]]:
    children: dict[bytes, list[_Candidate]] = {}
    for directory in directories:
        assert isinstance(directory.node, Directory)
        prefix = directory.path + b"/"
        for base, node in directory.node.children.items():
            children.setdefault(base, []).append(_Candidate(prefix + base, node))
    return children


def _resolve(candidate: _Candidate, trees: StoreTrees, above: frozenset[bytes] = frozenset()) -> Place | None:
    if not isinstance(candidate.node, Link):
        return Place(candidate.path, candidate.node)
    place = trees.resolve(candidate.path)
    # a link to a directory that we are in, such as bin/X11 -> ., would be followed without end
    return None if place is not None and place.path in above else place


def _stays_real(name: bytes) -> bool:
    return b"/" not in name or name.startswith(_MUTABLE)


def _report(name: bytes, chosen: bytes, rejected: Iterable[_Candidate], on_event: EventCallback) -> None:
    for candidate in rejected:
        on_event(FileCollision(path=text(b"/" + name), chosen=text(chosen), rejected=text(candidate.path)))


def text(name: bytes) -> str:
    """Return *name* for a person; what is not UTF-8 is escaped."""
    return name.decode(errors="backslashreplace")

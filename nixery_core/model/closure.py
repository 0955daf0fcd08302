"""The closure of an image: its store paths, their sizes and hashes, and who refers to whom."""

from __future__ import annotations

import functools
import graphlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from nixery_core.errors import InvalidClosure, InvalidDigest, InvalidStorePath
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath

# the order of StorePath itself, many times faster than its operators
_order = operator.attrgetter("hash", "name")


def _sorted_set(paths: Iterable[StorePath]) -> tuple[StorePath, ...]:
    return tuple(sorted(set(paths), key=_order))


def _by_path(infos: Iterable[PathInfo]) -> tuple[PathInfo, ...]:
    return tuple(sorted(infos, key=lambda info: _order(info.path)))


@attrs.frozen
class PathInfo:
    """What Nix knows of one store path."""

    path: StorePath
    """The store path."""
    nar_size: int
    """Size of its NAR, bytes."""
    references: tuple[StorePath, ...] = attrs.field(converter=_sorted_set)
    """The store paths that it refers to, sorted; holds the path itself where it refers to itself."""
    nar_hash: Digest | None = None
    """sha256 of its NAR; None where the origin does not tell."""


@attrs.frozen
class Closure:
    """A set of store paths that holds all their references, and the roots that it was made for.

    The paths are sorted, so equal closures are equal whatever the order of the input.

    Raises InvalidClosure where a reference or a root is missing, a path stands twice with
    different facts, or the references form a cycle of more than one path.

    >>> document = [{"path": "/nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-a", "narSize": 96, "references": []}]
    >>> closure = Closure.from_path_info(document, roots=["/nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-a"])
    >>> len(closure), closure.nar_size
    (1, 96)
    """

    paths: tuple[PathInfo, ...] = attrs.field(converter=_by_path)
    """One entry a store path, sorted by path."""
    roots: tuple[StorePath, ...] = attrs.field(converter=_sorted_set)
    """The paths that were asked for, sorted."""

    def __attrs_post_init__(self) -> None:
        if len(self._index) != len(self.paths):
            twice = next(b.path for a, b in zip(self.paths, self.paths[1:], strict=False) if a.path == b.path)
            raise InvalidClosure(f"{twice} stands twice in the closure")
        for info in self.paths:
            for reference in info.references:
                if reference not in self._index:
                    raise InvalidClosure(
                        f"{info.path} refers to {reference}, which is not in the closure",
                        hint="ask Nix for the whole closure: nix path-info --json --recursive",
                    )
        for root in self.roots:
            if root not in self._index:
                raise InvalidClosure(f"the root {root} is not in the closure")
        self.topological()

    @functools.cached_property
    def _index(self) -> Mapping[StorePath, PathInfo]:
        return {info.path: info for info in self.paths}

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[PathInfo]:
        return iter(self.paths)

    def __contains__(self, path: object) -> bool:
        return path in self._index

    def __getitem__(self, path: StorePath) -> PathInfo:
        return self._index[path]

    @property
    def nar_size(self) -> int:
        """Sum of the NAR sizes, bytes."""
        return sum(info.nar_size for info in self.paths)

    def nar_hashes(self, paths: Iterable[StorePath]) -> dict[StorePath, Digest]:
        """Return the narHash of each of *paths*; raises InvalidClosure where it is not known."""
        hashes = {}
        for path in paths:
            nar_hash = self[path].nar_hash
            if nar_hash is None:
                raise InvalidClosure(
                    f"the narHash of {path} is not known, so its content cannot be verified",
                    hint="build without verification, or take the closure from nix path-info --json",
                )
            hashes[path] = nar_hash
        return hashes

    def topological(self) -> tuple[StorePath, ...]:
        """Return the paths with every path after all that it refers to, in an order fixed by the closure alone."""
        return self._topological

    @functools.cached_property
    def _topological(self) -> tuple[StorePath, ...]:
        sorter = graphlib.TopologicalSorter(
            {info.path: [reference for reference in info.references if reference != info.path] for info in self.paths}
        )
        try:
            return tuple(sorter.static_order())
        except graphlib.CycleError as error:
            cycle = " -> ".join(str(path) for path in error.args[1])
            raise InvalidClosure(f"store paths refer to each other in a cycle: {cycle}") from None

    @classmethod
    def from_path_info(cls, document: object, roots: Iterable[str | StorePath]) -> Closure:
        """Read what ``nix path-info --json --recursive`` prints: a list (Nix 2.8) or an object by path (newer).

        Raises InvalidClosure, naming the entry, for any other form.
        """
        if isinstance(document, Mapping):
            rows: list[object] = [
                {**row, "path": path} if isinstance(row, Mapping) else _not_valid(path)
                for path, row in document.items()
            ]
        elif isinstance(document, list):
            rows = document
        else:
            raise InvalidClosure(f"path information is a JSON list or object, not {type(document).__name__}")
        return cls(_path_infos(rows), _roots(roots))

    @classmethod
    def from_reference_graph(cls, document: object, name: str = "graph") -> Closure:
        """Read Nix's exportReferencesGraph with structured attributes: the ``.attrs.json`` of a build.

        *name* is the attribute that the graph was asked under.  The roots are the paths that the
        request names.  Raises InvalidClosure, naming the entry, for any other form.
        """
        if not isinstance(document, Mapping):
            raise InvalidClosure(f"a reference graph is a JSON object, not {type(document).__name__}")
        rows = document.get(name)
        request = document.get("exportReferencesGraph")
        roots = request.get(name) if isinstance(request, Mapping) else None
        if not isinstance(rows, list) or not isinstance(roots, list):
            raise InvalidClosure(f"the document has no reference graph named {name!r}")
        return cls(_path_infos(rows), _roots(roots))


def _not_valid(path: str) -> object:
    raise InvalidClosure(f"Nix does not know {path}", hint="build or substitute it first")


def _roots(roots: Iterable[object]) -> list[StorePath]:
    return [root if isinstance(root, StorePath) else _store_path(root, {}, "root") for root in roots]


def _path_infos(rows: Iterable[object]) -> list[PathInfo]:
    infos: dict[StorePath, PathInfo] = {}
    known: dict[str, StorePath] = {}
    for row in rows:
        info = _path_info(row, known)
        if infos.setdefault(info.path, info) != info:
            raise InvalidClosure(f"{info.path} stands twice with different facts")
    return list(infos.values())


def _path_info(row: object, known: dict[str, StorePath]) -> PathInfo:
    if not isinstance(row, Mapping):
        raise InvalidClosure(f"an entry of the closure is a JSON object, not {type(row).__name__}")
    path = _store_path(row.get("path"), known, "path")
    if row.get("valid") is False:
        _not_valid(str(path))
    nar_size, references, nar_hash = row.get("narSize"), row.get("references"), row.get("narHash")
    # bool is an int to Python, not to JSON
    if not isinstance(nar_size, int) or isinstance(nar_size, bool) or nar_size < 0:
        raise InvalidClosure(f"{path}: narSize is a number of bytes, not {nar_size!r}")
    if not isinstance(references, list):
        raise InvalidClosure(f"{path}: references is a list of store paths, not {references!r}")
    return PathInfo(
        path, nar_size, [_store_path(item, known, path, "reference") for item in references], _nar_hash(path, nar_hash)
    )


def _nar_hash(path: StorePath, value: object) -> Digest | None:
    if value is None:
        return None
    try:
        return Digest.parse_nix(_text(value, f"{path}: narHash"))
    except InvalidDigest as error:
        raise InvalidClosure(f"{path}: {error.message}", hint=error.hint) from None


def _store_path(value: Any, known: dict[str, StorePath], *where: object) -> StorePath:
    # most paths are referred to many times: each is parsed once, and equal ones are one object
    if isinstance(value, str) and value in known:
        return known[value]
    what = ": ".join(str(part) for part in where)
    try:
        return known.setdefault(value, StorePath.parse(_text(value, what)))
    except InvalidStorePath as error:
        raise InvalidClosure(f"{what}: {error.message}", hint=error.hint) from None


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidClosure(f"{what} is a text, not {value!r}")
    return value

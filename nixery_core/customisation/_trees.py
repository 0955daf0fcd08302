"""The names inside store paths, read once each, and where symbolic links between them lead."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from nixery_core.errors import StoreReadError
from nixery_core.model.closure import Closure
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.reader import EntryType, StoreEntry, StoreReader

_MAX_LINKS = 40
"""As many links as Linux follows in one look-up (path_resolution(7))."""
_STORE = tuple(STORE_DIR.encode().strip(b"/").split(b"/"))


@attrs.frozen
class File:
    """A regular file."""

    executable: bool


@attrs.frozen
class Link:
    """A symbolic link."""

    target: bytes


@attrs.frozen
class Directory:
    """A directory with its children by name."""

    children: dict[bytes, Node]


Node = File | Link | Directory

_PLAIN, _EXECUTABLE = File(executable=False), File(executable=True)
_ABOVE_STORE = Directory({})


@attrs.frozen
class Place:
    """Where a path leads after every link: a file or directory of a store path."""

    path: bytes
    """Absolute, without links."""
    node: File | Directory

    @property
    def store_path(self) -> StorePath:
        """The store path that holds it."""
        return StorePath.parse(self.path.split(b"/")[len(_STORE) + 1].decode())

    @property
    def name(self) -> bytes:
        """Path relative to the store path."""
        return b"/".join(self.path.split(b"/")[len(_STORE) + 2 :])


class StoreTrees:
    """The trees of a closure's store paths; each is listed when it is first needed, and once."""

    def __init__(self, closure: Closure, reader: StoreReader) -> None:
        self._reader = reader
        self._paths: Mapping[bytes, StorePath] = {info.path.base.encode(): info.path for info in closure}
        self._trees: dict[StorePath, Node] = {}

    def tree(self, path: StorePath) -> Node:
        """Return what *path* is; raises StoreReadError."""
        if path not in self._trees:
            self._trees[path] = self._read(path)
        return self._trees[path]

    def resolve(self, path: bytes) -> Place | None:
        """Follow an absolute path through every link; None where it leads nowhere or out of the closure."""
        names: list[bytes] = []
        nodes: list[File | Directory] = [_ABOVE_STORE]
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if not isinstance(nodes[-1], Directory):
                return None
            if part in (b"", b"."):
                continue
            if part == b"..":
                del names[-1:]
                del nodes[len(names) + 1 :]
                continue
            node = self._child(names, nodes[-1], part)
            if node is None:
                return None
            if isinstance(node, Link):
                links += 1
                if links > _MAX_LINKS:
                    return None
                if node.target.startswith(b"/"):
                    names, nodes = [], [_ABOVE_STORE]
                pending.extend(node.target.split(b"/")[::-1])
                continue
            names.append(part)
            nodes.append(node)
        if len(names) <= len(_STORE):
            return None
        return Place(b"/" + b"/".join(names), nodes[-1])

    def paths_named(self, package_name: str) -> list[StorePath]:
        """Return the closure's paths of one package name, in an order fixed by their names."""
        named = [path for path in self._paths.values() if path.package_name == package_name]
        return sorted(named, key=lambda path: (path.name, path.hash))

    def _child(self, names: list[bytes], parent: Directory, part: bytes) -> Node | None:
        depth = len(names)
        if depth < len(_STORE):
            return _ABOVE_STORE if part == _STORE[depth] else None
        if depth == len(_STORE):
            path = self._paths.get(part)
            return None if path is None else self.tree(path)
        return parent.children.get(part)

    def _read(self, path: StorePath) -> Node:
        root: Node | None = None
        directories: dict[bytes, dict[bytes, Node]] = {}
        for entry in self._reader.listing(path):
            node = _node(entry)
            name = entry.name
            if isinstance(node, Directory):
                directories[name] = node.children
            if not name:
                root = node
                continue
            parent, _, base = name.rpartition(b"/")
            try:
                directories[parent][base] = node
            except KeyError:
                raise StoreReadError(f"{path}: the listing has {name!r} before its directory") from None
        if root is None:
            raise StoreReadError(f"{path}: the listing is empty")
        return root


def _node(entry: StoreEntry) -> Node:
    if entry.type is EntryType.REGULAR:
        return _EXECUTABLE if entry.executable else _PLAIN
    if entry.type is EntryType.SYMLINK:
        return Link(entry.target)
    return Directory({})

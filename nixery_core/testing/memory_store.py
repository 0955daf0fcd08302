"""A store that lives in memory, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import attrs

from nixery_core.errors import StoreReadError
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType, StoreEntry


@attrs.frozen
class Executable:
    """A regular file that may be executed."""

    content: bytes


@attrs.frozen
class SymbolicLink:
    """A symbolic link."""

    target: str | bytes


Tree: TypeAlias = "bytes | Executable | SymbolicLink | Mapping[str, Tree] | Mapping[bytes, Tree]"
"""A plain file by its content, a program, a link, or a directory by its names."""


@attrs.frozen
class _Content:
    data: bytes

    def __call__(self) -> Iterator[bytes]:
        return iter((self.data,) if self.data else ())


@attrs.frozen
class MemoryStore:
    """A StoreReader of store paths that are given as nested mappings.

    >>> hello = StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-hello")
    >>> store = MemoryStore({hello: {"bin": {"hello": Executable(b"#!"), "hi": SymbolicLink("hello")}}})
    >>> [entry.name for entry in store.entries(hello)]
    [b'', b'bin', b'bin/hello', b'bin/hi']
    """

    trees: Mapping[StorePath, Tree]

    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* with contents; raises StoreReadError."""
        return _walk(self._tree(path), contents=True)

    def listing(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* without contents; raises StoreReadError."""
        return _walk(self._tree(path), contents=False)

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        """Return up to *size* first bytes of the regular file *name* in *path*; raises StoreReadError."""
        tree = self._tree(path)
        for part in name.split(b"/") if name else []:
            children = {_encoded(base): child for base, child in tree.items()} if isinstance(tree, Mapping) else {}
            if part not in children:
                raise StoreReadError(f"{path} has no file {name!r}")
            tree = children[part]
        if isinstance(tree, Executable):
            return tree.content[:size]
        if isinstance(tree, bytes):
            return tree[:size]
        raise StoreReadError(f"{name!r} in {path} is not a regular file")

    def _tree(self, path: StorePath) -> Tree:
        try:
            return self.trees[path]
        except KeyError:
            raise StoreReadError(f"there is no {path} in the memory store") from None


def _walk(root: Tree, *, contents: bool) -> Iterator[StoreEntry]:
    pending: list[tuple[bytes, Tree]] = [(b"", root)]
    while pending:
        name, tree = pending.pop()
        if isinstance(tree, SymbolicLink):
            yield StoreEntry(name=name, type=EntryType.SYMLINK, target=_encoded(tree.target))
        elif isinstance(tree, (bytes, Executable)):
            data = tree if isinstance(tree, bytes) else tree.content
            yield StoreEntry(
                name=name,
                type=EntryType.REGULAR,
                executable=isinstance(tree, Executable),
                size=len(data),
                contents=_Content(data) if contents else None,
            )
        else:
            yield StoreEntry(name=name, type=EntryType.DIRECTORY)
            prefix = name + b"/" if name else b""
            named = [(_encoded(base), child) for base, child in tree.items()]
            pending.extend((prefix + base, child) for base, child in sorted(named, key=_first, reverse=True))


def _encoded(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _first(pair: tuple[bytes, Tree]) -> bytes:
    return pair[0]

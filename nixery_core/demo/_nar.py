"""Trees of files, and the archives that a binary cache keeps of them.

Source: Eelco Dolstra, "The Purely Functional Software Deployment Model", figure 5.2; Nix, ``archive.cc``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import attrs


@attrs.frozen
class Program:
    """A file that may be executed."""

    content: bytes


@attrs.frozen
class Link:
    """A symbolic link."""

    target: str


Tree: TypeAlias = "bytes | Program | Link | Mapping[str, Tree]"
"""A file by its content, a program, a link, or a directory by its names."""


def nar_bytes(tree: Tree) -> bytes:
    """Return the archive of *tree*.

    >>> len(nar_bytes(b"hello"))
    120
    """
    return b"".join(map(_padded, [b"nix-archive-1", *_node(tree)]))


def _padded(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


def _node(tree: Tree) -> Iterator[bytes]:
    yield from (b"(", b"type")
    if isinstance(tree, Link):
        yield from (b"symlink", b"target", tree.target.encode())
    elif isinstance(tree, Program):
        yield from (b"regular", b"executable", b"", b"contents", tree.content)
    elif isinstance(tree, bytes):
        yield from (b"regular", b"contents", tree)
    else:
        yield b"directory"
        for name, child in sorted((name.encode(), child) for name, child in tree.items()):
            yield from (b"entry", b"(", b"name", name, b"node")
            yield from _node(child)
            yield b")"
    yield b")"

"""Hypothesis strategies for what the library works on: store paths, store trees, closures.

hypothesis has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree

_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
_STORE_NAME = "abcxyzABC0123456789+-._?="
# around the blocks of a tar archive, and nothing at all
_SIZES = (0, 1, 511, 512, 513, 1024, 5000)


def store_paths() -> st.SearchStrategy[StorePath]:
    """Give store paths, with names as long as Nix allows."""
    names = st.text(_STORE_NAME, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))
    long_names = st.integers(150, 211).map(lambda size: "n" * size)
    return st.builds(StorePath, st.text(_BASE32, min_size=32, max_size=32), st.one_of(names, names, long_names))


def file_names() -> st.SearchStrategy[bytes]:
    """Give the names of files that a store and a layer can hold: any bytes, not only UTF-8, short and long."""
    usual = st.text("abcxyz.-_ ~", min_size=1, max_size=12).map(str.encode)
    unicode = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
    raw = st.binary(min_size=1, max_size=8)
    long_names = st.builds(lambda head, size: head + b"l" * size, usual, st.integers(85, 200))
    names = st.one_of(usual, unicode.map(str.encode), raw, long_names)
    return names.filter(_can_be_stored)


def _can_be_stored(name: bytes) -> bool:
    return name not in (b".", b"..") and not name.startswith(b".wh.") and b"/" not in name and b"\0" not in name


def link_targets() -> st.SearchStrategy[bytes]:
    """Give targets of symbolic links: relative, absolute, long, not UTF-8."""
    raw = st.binary(min_size=1, max_size=20).filter(lambda target: b"\0" not in target)
    return st.one_of(
        raw, st.sampled_from([b"../lib", b"/nix/store/x", b"."]), st.integers(98, 300).map(lambda n: b"t" * n)
    )


def contents() -> st.SearchStrategy[bytes]:
    """Give contents of files, short and around the blocks of an archive."""
    return st.one_of(
        st.binary(max_size=40),
        st.builds(lambda fill, size: fill * size, st.binary(min_size=1, max_size=1), st.sampled_from(_SIZES)),
    )


def trees(max_leaves: int = 12) -> st.SearchStrategy[Tree]:
    """Give the content of a store path: a file, a program, a link, or directories of them, also empty ones."""
    leaves: st.SearchStrategy[Tree] = st.one_of(
        contents(), st.builds(Executable, contents()), st.builds(SymbolicLink, link_targets())
    )

    def directories(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.dictionaries(file_names(), children, max_size=5)

    return st.recursive(leaves, directories, max_leaves=max_leaves)


def stores(min_size: int = 1, max_size: int = 4) -> st.SearchStrategy[MemoryStore]:
    """Give stores with a few store paths."""
    paths: st.SearchStrategy[Mapping[StorePath, Tree]] = st.dictionaries(
        store_paths(), trees(), min_size=min_size, max_size=max_size
    )
    return st.builds(MemoryStore, paths)


@st.composite
def closures(draw: st.DrawFn, min_size: int = 1, max_size: int = 20) -> Closure:
    """Give closures: references that close and form no cycle, self references, one root or more."""
    paths = draw(st.lists(store_paths(), min_size=min_size, max_size=max_size, unique=True))
    infos = []
    for number, path in enumerate(paths):
        earlier = draw(st.lists(st.sampled_from(paths[:number]), max_size=4)) if number else []
        itself = [path] if draw(st.booleans()) else []
        infos.append(PathInfo(path, draw(st.integers(0, 1 << 32)), [*earlier, *itself]))
    referred = {reference for info in infos for reference in info.references if reference != info.path}
    # all that nothing refers to are roots, else the closure would be smaller
    tops = [path for path in paths if path not in referred]
    more = draw(st.lists(st.sampled_from(paths), max_size=2)) if paths else []
    return Closure(draw(st.permutations(infos)), [*tops, *more])

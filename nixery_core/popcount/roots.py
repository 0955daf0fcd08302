"""Lists of store paths: where the closures of a count begin."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from nixery_core._documents import MOST_BYTES, read_document, unpack_document
from nixery_core._redact import redact
from nixery_core.errors import InvalidDocument, InvalidStorePath
from nixery_core.model.storepath import STORE_DIR, StorePath

CHANNELS = "https://channels.nixos.org"
"""Where a channel has its ``store-paths.xz``."""
_SHOWN = 10


def read_roots(words: Iterable[str]) -> tuple[StorePath, ...]:
    """Return the store paths that *words* name, each once, sorted.

    Args:
        words: Store paths; or lists of them, one a line, plain or packed: files, any URL, ``-`` for
            standard input, and ``channel:NAME`` for all that a channel of nixpkgs has in its cache.

    Raises:
        InvalidStorePath: A word in the store is no store path.
        InvalidDocument: A list has other lines; they are named with their numbers.
        ObjectNotFound, StorageError: A list cannot be read.
    """
    roots: set[StorePath] = set()
    for word in words:
        if word.startswith(f"{STORE_DIR}/"):
            roots.add(StorePath.parse(word))
        else:
            roots.update(_listed(word))
    return tuple(sorted(roots, key=str))


def parse_list(data: bytes, *, where: str) -> list[StorePath]:
    r"""Return the store paths of a list; empty lines are passed over.

    Raises InvalidDocument, which names *where* and the lines that are no store paths.

    >>> [path.name for path in parse_list(b"/nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15\n", where="x")]
    ['bash-5.2.15']
    """
    paths: list[StorePath] = []
    wrong: list[str] = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        path = _path(text)
        if path is None:
            wrong.append(f"line {number}: {text[:80]!r}")
        else:
            paths.append(path)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InvalidDocument(
            f"{where} is a list of store paths, but has {'; '.join(wrong[:_SHOWN])}{more}",
            hint=f"write one path a line, as {STORE_DIR}/<hash>-<name>",
        )
    return paths


def _path(text: str) -> StorePath | None:
    try:
        return StorePath.parse(text) if text.startswith(f"{STORE_DIR}/") else None
    except InvalidStorePath:
        return None


def _listed(word: str) -> list[StorePath]:
    if word == "-":
        data = unpack_document(sys.stdin.buffer.read(MOST_BYTES + 1), where="standard input")
        return parse_list(data, where="standard input")
    kind, _, channel = word.partition(":")
    url = f"{CHANNELS}/{channel}/store-paths.xz" if kind == "channel" and channel else word
    return parse_list(read_document(url), where=redact(url))

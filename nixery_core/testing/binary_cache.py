"""Small binary caches on disk, made without Nix; for tests, and for trying things out."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from nixery_core.model.digest import Digest, nix_base32
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.signatures import PublicKey, fingerprint
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def nar_bytes(tree: Tree) -> bytes:
    """Return *tree* as a NAR, the archive format of Nix.

    >>> len(nar_bytes(b"hello"))
    120
    """
    pieces: list[bytes] = []
    _put(pieces, b"nix-archive-1")
    _put_node(pieces, tree)
    return b"".join(pieces)


def _put(pieces: list[bytes], *texts: bytes) -> None:
    for text in texts:
        pieces += (len(text).to_bytes(8, "little"), text, bytes(-len(text) % 8))


def _put_node(pieces: list[bytes], tree: Tree) -> None:
    _put(pieces, b"(", b"type")
    if isinstance(tree, SymbolicLink):
        target = tree.target.encode() if isinstance(tree.target, str) else tree.target
        _put(pieces, b"symlink", b"target", target)
    elif isinstance(tree, Executable):
        _put(pieces, b"regular", b"executable", b"", b"contents", tree.content)
    elif isinstance(tree, bytes):
        _put(pieces, b"regular", b"contents", tree)
    else:
        _put(pieces, b"directory")
        for name, child in _children(tree):
            _put(pieces, b"entry", b"(", b"name", name, b"node")
            _put_node(pieces, child)
            _put(pieces, b")")
    _put(pieces, b")")


def _children(tree: Mapping[str, Tree] | Mapping[bytes, Tree]) -> list[tuple[bytes, Tree]]:
    named = [(name.encode() if isinstance(name, str) else name, child) for name, child in tree.items()]
    return sorted(named, key=lambda pair: pair[0])


@attrs.frozen
class SigningKey:
    """A key that signs store paths; the package cryptography has to be installed.

    >>> key = SigningKey("lab-1", bytes(32))
    >>> str(key.public)
    'lab-1:O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik='
    """

    name: str
    seed: bytes = attrs.field(repr=False)
    """32 bytes."""

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Read a secret key as ``nix-store --generate-binary-cache-key`` writes it."""
        name, _, encoded = text.strip().partition(":")
        return cls(name, base64.b64decode(encoded, validate=True)[:32])

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.name, self._key().public_key().public_bytes_raw())

    def sign(self, info: NarInfo) -> NarInfo:
        """Return *info* with one more signature."""
        signature = base64.b64encode(self._key().sign(fingerprint(info))).decode()
        return attrs.evolve(info, signatures=(*info.signatures, f"{self.name}:{signature}"))

    def _key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed)


def write_cache(
    directory: Path,
    store: MemoryStore,
    *,
    references: Mapping[StorePath, Iterable[StorePath]] | None = None,
    compression: str = "none",
    keys: Iterable[SigningKey] = (),
    listings: bool = False,
) -> dict[StorePath, NarInfo]:
    """Write every path of *store* into a binary cache, and return what its narinfo files say.

    Args:
        directory: Of the cache; what is there is kept.
        store: The paths with their content.
        references: Which paths a path refers to; none by default.
        compression: ``none``, ``xz``, ``bzip2``, ``gzip``, ``zstd`` or ``br`` (needs the package brotli).
        keys: Sign every path.
        listings: Whether to write ``.ls`` files.
    """
    extension, pack = _PACKERS[compression]
    (directory / "nar").mkdir(parents=True, exist_ok=True)
    (directory / "nix-cache-info").write_text(f"StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: 40\n")
    infos: dict[StorePath, NarInfo] = {}
    for path, tree in store.trees.items():
        nar = nar_bytes(tree)
        packed = pack(nar)
        file_hash = Digest.of(packed)
        info = NarInfo(
            store_path=path,
            url=f"nar/{nix_base32(bytes.fromhex(file_hash.hex))}.nar{extension}",
            compression=compression,
            file_hash=file_hash,
            file_size=len(packed),
            nar_hash=Digest.of(nar),
            nar_size=len(nar),
            references=tuple((references or {}).get(path, ())),
        )
        for key in keys:
            info = key.sign(info)
        (directory / info.url).write_bytes(packed)
        (directory / f"{path.hash}.narinfo").write_bytes(info.to_bytes())
        if listings:
            (directory / f"{path.hash}.ls").write_bytes(listing_bytes(tree))
        infos[path] = info
    return infos


def listing_bytes(tree: Tree) -> bytes:
    """Return the listing of *tree* as ``nix copy`` writes it with ``write-nar-listing``; names must be UTF-8.

    >>> listing_bytes(b"hello")
    b'{"version": 1, "root": {"type": "regular", "size": 5}}'
    """
    return json.dumps({"version": 1, "root": _listing(tree)}).encode()


def _brotli(data: bytes) -> bytes:
    import brotli

    packed: bytes = brotli.compress(data, quality=4)
    return packed


_PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "xz": (".xz", lambda data: lzma.compress(data, preset=1)),
    "bzip2": (".bz2", bz2.compress),
    "gzip": (".gz", gzip.compress),
    "zstd": (".zst", zstd.compress),
    "br": (".br", _brotli),
}


def _listing(tree: Tree) -> dict[str, object]:
    if isinstance(tree, SymbolicLink):
        target = tree.target.decode() if isinstance(tree.target, bytes) else tree.target
        return {"type": "symlink", "target": target}
    if isinstance(tree, Executable):
        return {"type": "regular", "size": len(tree.content), "executable": True}
    if isinstance(tree, bytes):
        return {"type": "regular", "size": len(tree)}
    return {"type": "directory", "entries": {name.decode(): _listing(child) for name, child in _children(tree)}}

"""Store paths that follow from their content: whether they do, so that nobody has to vouch for them.

Source: Nix, ``store-api.cc`` (``makeStorePath``, ``makeFixedOutputPath``, ``makeTextPath``).
"""

from __future__ import annotations

import hashlib
import re

from nixery_core.errors import InvalidDigest, UntrustedPath
from nixery_core.model.digest import Digest, nix_base32
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores.narinfo import NarInfo

_FORM = re.compile(r"(?P<method>text|fixed|fixed:r):(?P<hash>sha256:[0-9a-z]+)")
_PATH_HASH_BYTES = 20


def check_content_address(info: NarInfo) -> None:
    """Raise UntrustedPath unless the store path of *info*, with its references, follows from its content address.

    ``fixed:r:`` holds the hash of the archive, so NarHash is compared here.  ``text:`` and ``fixed:``
    hold the hash of one file, see :func:`file_hash`.
    """
    found = _parse(info.content_address)
    if found is None or info.store_path in info.references:
        # the hash of what refers to itself is taken with its own name left out
        raise UntrustedPath(
            f"{info.store_path}: the content address {info.content_address!r} is not understood",
            hint="such a path needs a signature",
        )
    method, digest = found
    path = content_addressed_path(method, digest, info.store_path.name, info.references)
    if path != info.store_path:
        raise UntrustedPath(
            f"{info.store_path} does not follow from its content address {info.content_address}, which gives {path}",
            hint="the narinfo was changed: do not use this cache",
        )
    if method == "fixed:r" and digest != info.nar_hash:
        raise UntrustedPath(
            f"{info.store_path}: NarHash is not the hash in its content address {info.content_address}",
            hint="the narinfo was changed: do not use this cache",
        )


def file_hash(info: NarInfo) -> Digest | None:
    """Return the sha256 that the content address of *info* promises of its one file, or None where it is of no file."""
    found = _parse(info.content_address)
    return found[1] if found is not None and found[0] != "fixed:r" else None


def content_addressed_path(method: str, digest: Digest, name: str, references: tuple[StorePath, ...]) -> StorePath:
    """Return the store path of content with the sha256 *digest*.

    Args:
        method: ``text`` and ``fixed`` for the hash of a file, ``fixed:r`` for the hash of an archive.
        digest: The hash.
        name: Of the store path.
        references: Of the store path, none of them itself; only ``text`` and ``fixed:r`` can have some.

    >>> str(content_addressed_path("fixed:r", Digest.of(b""), "x", ()))
    '/nix/store/...-x'
    """
    if method == "fixed" and not references:
        inner = hashlib.sha256(f"fixed:out:{digest}:".encode()).hexdigest()
        return _path("output:out", f"sha256:{inner}", name)
    kind = {"text": "text", "fixed:r": "source"}.get(method, "fixed")
    return _path(":".join((kind, *map(str, references))), str(digest), name)


def _path(kind: str, inner: str, name: str) -> StorePath:
    whole = hashlib.sha256(f"{kind}:{inner}:{STORE_DIR}:{name}".encode()).digest()
    folded = bytearray(_PATH_HASH_BYTES)
    for index, byte in enumerate(whole):
        folded[index % _PATH_HASH_BYTES] ^= byte
    return StorePath(nix_base32(bytes(folded)), name)


def _parse(content_address: str | None) -> tuple[str, Digest] | None:
    match = _FORM.fullmatch(content_address or "")
    if match is None:
        return None
    try:
        return match["method"], Digest.parse_nix(match["hash"])
    except InvalidDigest:
        return None

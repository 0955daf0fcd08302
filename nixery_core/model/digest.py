"""Digests of the OCI specifications, and Nix's ways to write the same hash."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import attrs

from nixery_core.errors import InvalidDigest

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_NIX_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
_NIX_VALUE = {character: value for value, character in enumerate(_NIX_ALPHABET)}
_HINT = "a digest is written sha256:<64 lower-case hexadecimal characters>"


@attrs.frozen(order=True)
class Digest:
    """The hash of some bytes, as the OCI image specification writes it.

    Source: image-spec, descriptor.md, "Digests" (registered algorithms sha256 and sha512).

    >>> str(Digest.of(b""))
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    >>> Digest.parse("sha256:e3b0")
    Traceback (most recent call last):
    nixery_core.errors.InvalidDigest: 'sha256:e3b0' is not a digest
    """

    algorithm: str
    """``sha256`` or ``sha512``."""
    hex: str
    """The hash in lower-case hexadecimal characters."""

    def __attrs_post_init__(self) -> None:
        if _HEX_LENGTH.get(self.algorithm) != len(self.hex) or not _HEX.fullmatch(self.hex):
            raise InvalidDigest(f"{f'{self.algorithm}:{self.hex}'!r} is not a digest", hint=_HINT)

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``algorithm:hex``; raises InvalidDigest."""
        algorithm, separator, hexadecimal = text.partition(":")
        if not separator:
            raise InvalidDigest(f"{text!r} is not a digest", hint=_HINT)
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the sha256 digest of *data*."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    @classmethod
    def parse_nix(cls, text: str) -> Digest:
        """Read a sha256 hash in any form that Nix prints: base 16, base 32 (``sha256:``) or SRI (``sha256-``).

        >>> Digest.parse_nix("sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73").hex[:8]
        'e3b0c442'
        >>> Digest.parse_nix("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").hex[:8]
        'e3b0c442'
        """
        raw = _nix_bytes(text)
        if raw is None or len(raw) != 32:
            raise InvalidDigest(
                f"{text!r} is not a sha256 hash of Nix", hint="Nix writes sha256:<base 32> or sha256-<base 64>"
            )
        return cls("sha256", raw.hex())

    def to_nix(self) -> str:
        """Return the hash as narinfo files write it: ``sha256:`` and Nix's base 32.

        >>> Digest.of(b"").to_nix()
        'sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73'
        """
        return f"{self.algorithm}:{nix_base32(bytes.fromhex(self.hex))}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def _nix_bytes(text: str) -> bytes | None:
    if text.startswith("sha256-"):
        try:
            return base64.b64decode(text.removeprefix("sha256-"), validate=True)
        except (binascii.Error, ValueError):
            return None
    if not text.startswith("sha256:"):
        return None
    body = text.removeprefix("sha256:")
    if len(body) == 64 and _HEX.fullmatch(body):
        return bytes.fromhex(body)
    return _from_base32(body) if len(body) == 52 else None


def _from_base32(text: str) -> bytes | None:
    # The last character carries the lowest bits: Nix writes the hash as one little-endian number.
    number = 0
    for character in text:
        if character not in _NIX_VALUE:
            return None
        number = number << 5 | _NIX_VALUE[character]
    size = len(text) * 5 // 8
    return number.to_bytes(size, "little") if number < 1 << (8 * size) else None


def nix_base32(raw: bytes) -> str:
    """Return *raw* as Nix writes hashes: its own 32 characters, the lowest bits last."""
    number = int.from_bytes(raw, "little")
    length = (len(raw) * 8 + 4) // 5
    return "".join(_NIX_ALPHABET[number >> (5 * i) & 31] for i in reversed(range(length)))

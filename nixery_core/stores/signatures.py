"""Who vouches for a store path: Ed25519 signatures over what a narinfo says of it.

Source: Nix, ``path-info.cc`` (``ValidPathInfo::fingerprint``) and ``crypto.cc``.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from nixery_core.errors import InvalidConfig, nearest
from nixery_core.stores.narinfo import NarInfo

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KNOWN_KEYS = {"cache.nixos.org-1": "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="}
"""Public keys that may be given by their names alone."""

_KEY_BYTES = 32
_HINT = "a public key is written <name>:<base 64>, as nix-store --generate-binary-cache-key writes it"


@attrs.frozen
class PublicKey:
    """The public half of a key that signs store paths.

    >>> PublicKey.parse("cache.nixos.org-1").name
    'cache.nixos.org-1'
    """

    name: str
    """Which of its signatures a store path is checked by."""
    raw: bytes
    """32 bytes."""

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read ``name:base64``, or the name of a key in KNOWN_KEYS; raises InvalidConfig."""
        name, colon, encoded = KNOWN_KEYS.get(text.strip(), text.strip()).partition(":")
        if not colon:
            near = nearest(text, tuple(KNOWN_KEYS), limit=1)
            raise InvalidConfig(f"{text!r} is not a public key", hint=f"did you mean {near[0]}?" if near else _HINT)
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not name or len(raw) != _KEY_BYTES:
            # a secret key has 64 bytes and looks the same: it must not get into a log
            raise InvalidConfig(f"what is given as the public key {name!r} is none", hint=_HINT)
        return cls(name, raw)

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Return whether *signature* over *text* was made with the secret half; raises InvalidConfig."""
        key = _key(self.raw)
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(signature, text)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name}:{base64.b64encode(self.raw).decode()}"


def public_keys(keys: str | PublicKey | Iterable[str | PublicKey]) -> tuple[PublicKey, ...]:
    """Read keys, one text with spaces between as Nix's ``trusted-public-keys``, or a list; raises InvalidConfig."""
    if isinstance(keys, (str, PublicKey)):
        keys = keys.split() if isinstance(keys, str) else [keys]
    return tuple(key if isinstance(key, PublicKey) else PublicKey.parse(key) for key in keys)


def fingerprint(info: NarInfo) -> bytes:
    """Return the text that is signed: store path, NAR hash, NAR size and references.

    The address of the archive and its compression are not in it: whoever has the cache can change
    them, and cannot make anything else of the content.
    """
    references = ",".join(str(path) for path in info.references)
    return f"1;{info.store_path};{info.nar_hash.to_nix()};{info.nar_size};{references}".encode()


def signed_by(info: NarInfo, keys: Iterable[PublicKey]) -> PublicKey | None:
    """Return one of *keys* whose signature on *info* is right, or None; any one of several will do."""
    by_name: dict[str, list[PublicKey]] = {}
    for key in keys:
        by_name.setdefault(key.name, []).append(key)
    text = None
    for signature in info.signatures:
        name, _, encoded = signature.partition(":")
        # while a key is replaced, both may go by one name
        for key in by_name.get(name, ()):
            try:
                raw = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                break
            text = fingerprint(info) if text is None else text
            if key.verifies(raw, text):
                return key
    return None


@functools.lru_cache(maxsize=64)
def _key(raw: bytes) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise InvalidConfig(
            "signatures of store paths need the package cryptography", hint="pip install 'nixery-core[cache]'"
        ) from None
    return Ed25519PublicKey.from_public_bytes(raw)

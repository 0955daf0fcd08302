"""Identity of inputs: one hash over labelled, length-prefixed fields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def hash_fields(label: str, fields: Iterable[str | bytes]) -> str:
    """Return 64 hexadecimal characters that differ whenever *label* or any field differs.

    Every field goes in behind its length, so moving a character from one field to the next
    changes the result.

    >>> hash_fields("x", ["ab", "c"]) == hash_fields("x", ["a", "bc"])
    False
    """
    state = hashlib.sha256()
    for field in (f"nixery-core {label}", *fields):
        raw = field.encode() if isinstance(field, str) else field
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return state.hexdigest()

"""The storage contract: what a place must do to keep blobs and cache entries.

The promise: no client ever observes a partially written object.  A writer publishes on
:meth:`BlobWriter.commit` alone; closing, dropping or failing publishes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import attrs

from nixery_core._redact import redact
from nixery_core.model.digest import Digest


@attrs.frozen
class ObjectInfo:
    """What a listing or a look-up tells of one object."""

    key: str
    size: int
    """Bytes."""
    modified: float | None = None
    """Time of the last change, seconds since the epoch; None where the backend does not know."""


@attrs.frozen
class BackendRef:
    """How to open a backend again, in another thread, process or machine: it pickles."""

    url: str = attrs.field(repr=redact)
    options: Mapping[str, Any] = attrs.field(factory=lambda: MappingProxyType({}), converter=dict, repr=False)
    """What was passed beside the URL; may hold secrets, so it is not shown."""


class BlobWriter(Protocol):
    """One blob on its way into the storage; its digest is known only at the end."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*; blocks while the storage is slow; raises StorageError."""
        ...

    def commit(self, digest: Digest) -> None:
        """Publish what was written as the blob *digest*; an existing blob is success; raises StorageError.

        After an error nothing was published and nothing is left behind.
        """
        ...

    def cancel(self) -> None:
        """Drop what was written; does nothing after a commit or a cancel, and never raises for what is gone."""
        ...


class Backend(Protocol):
    """Keeps objects under keys such as ``blobs/sha256/<hex>``; every call may come from any thread.

    Keys are relative, ``/``-separated texts of :mod:`nixery_core.storage.keys`; anything that could
    leave the store raises InvalidKey.  All errors are StorageErrors that name the key.
    """

    @property
    def ref(self) -> BackendRef:
        """How to open this backend again."""
        ...

    def open_blob(self) -> BlobWriter:
        """Begin a blob."""
        ...

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        """Put a small object if there is none under *key*; return whether this call created it."""
        ...

    def replace(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Put a small object, atomically in the place of what is there: for refs and indexes only."""
        ...

    def get(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFound."""
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the bytes of an object from *start* to before *end* in pieces; raises ObjectNotFound."""
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give every object whose key begins with *prefix* (which ends with ``/``, or is empty), sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        ...

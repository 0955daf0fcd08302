"""What a bucket of an object store can be asked for: the part of a backend that speaks to one service.

A service such as S3 takes whole objects, and large ones in parts that are not seen before the
upload is completed.  An :class:`ObjectStore` speaks its language and knows its errors;
:class:`~nixery_core.storage.object_store_backend.ObjectStoreBackend` keeps the promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import attrs

from nixery_core.events import EventCallback
from nixery_core.storage.backend import ObjectInfo
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.keys import BLOBS

IMMUTABLE = "max-age=31536000, immutable"
MUTABLE = "no-store"


@attrs.frozen
class ObjectHeaders:
    """What an object says of itself to whoever fetches it by HTTP."""

    content_type: str = "application/octet-stream"
    cache_control: str = MUTABLE

    @classmethod
    def of(cls, key: str, content_type: str = "application/octet-stream") -> ObjectHeaders:
        """Return the headers for *key*: what is under its digest never changes, everything else may.

        >>> ObjectHeaders.of("index.json", "application/json").cache_control
        'no-store'
        """
        return cls(content_type, IMMUTABLE if key.startswith(BLOBS) else MUTABLE)


@attrs.frozen
class Piece:
    """A range of an object."""

    data: bytes = attrs.field(repr=False)
    size: int
    """Bytes of the whole object."""
    version: str
    """What changes when the object is replaced; empty where the service has no such thing."""


class ObjectStore(Protocol):
    """One bucket, or a part of it; any thread may call, in the process that made it or a child of it.

    Each method sends its requests again where that may help, tells of it, and raises StorageErrors.
    Keys are those of the storage; what is put before them is the store's own business.
    """

    @property
    def decides(self) -> bool:
        """Whether the service is known to obey ``only_new``; others are asked first whether there is an object."""
        ...

    @property
    def parallel_parts(self) -> int:
        """How many parts of one upload may be sent at once."""
        ...

    def with_events(self, on_event: EventCallback) -> ObjectStore:
        """Return the same store, telling *on_event* of requests that are sent again."""
        ...

    def put(self, key: str, data: bytes | bytearray, headers: ObjectHeaders, *, only_new: bool = False) -> bool:
        """Put an object whole; with *only_new* only where there is none; return whether it was put."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object whole; raises ObjectNotFound."""
        ...

    def get_range(self, key: str, start: int, end: int, version: str = "") -> Piece:
        """Return the bytes from *start* to before *end*, or as many as there are.

        Raises ObjectNotFound, and StorageError where the object is no longer of *version*.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give the objects whose keys begin with *prefix*, in the order of the bytes of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        ...

    def copy(self, source: str, target: str, size: int, headers: ObjectHeaders) -> None:
        """Copy an object of *size* bytes inside the service; the target is there whole or not at all."""
        ...

    def start_upload(self, key: str, headers: ObjectHeaders) -> UnfinishedUpload:
        """Begin an object that arrives in parts."""
        ...

    def upload_part(
        self, upload: UnfinishedUpload, number: int, offset: int, data: bytes | bytearray, *, last: bool
    ) -> str:
        """Send part *number*, from 1 on, which begins at *offset*; return what the service calls it.

        Every part but the last is a multiple of 256 KiB.
        """
        ...

    def complete_upload(self, upload: UnfinishedUpload, parts: tuple[str, ...], size: int) -> None:
        """Make the object of its parts, in their order; it is there whole or not at all.

        If the service has made it of less than the *size* bytes that were sent, it is removed, and a
        StorageError says so: nobody looks again.
        """
        ...

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that is finished or gone is success."""
        ...

    def signed_url(
        self, key: str, method: Literal["GET", "HEAD"], expires: int, content_type: str | None
    ) -> str | None:
        """Return a URL that answers *method*, or None where none can be signed."""
        ...

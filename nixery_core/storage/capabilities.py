"""What some backends can do beyond the contract, each a small protocol of its own.

Ask with ``isinstance(backend, SupportsSignedUrls)``.  A backend that has the method may still say
None or False for one object or one server: then do it the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import attrs

from nixery_core.events import EventCallback
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend


@runtime_checkable
class SupportsSignedUrls(Protocol):
    """Clients may fetch objects from the storage themselves, for a while, without credentials."""

    def signed_url(
        self, key: str, *, method: Literal["GET", "HEAD"] = "GET", expires: int = 3600, content_type: str | None = None
    ) -> str | None:
        """Return a URL that answers *method* for an object, or None: serve it yourself.

        Nothing is asked of the storage, so the object need not be there.  A URL is good for its
        method only: S3 refuses a HEAD of one that was signed for GET.  It is a secret; do not log it.

        Args:
            key: The object.
            method: ``GET`` or ``HEAD``.
            expires: Seconds from now; S3 takes at most 604,800, seven days.
            content_type: What the answer has to say of its type; by default what was stored.

        Raises:
            InvalidConfig: For a method or a time that no URL can be signed for.
            InvalidKey: For a malformed key.
            StorageError: Where signing fails, such as without credentials.
        """
        ...


@runtime_checkable
class SupportsLocalFiles(Protocol):
    """Objects are files of this machine, for ``sendfile`` and its like."""

    def local_file(self, key: str) -> Path | None:
        """Return the file of an object to read, or None where there is none; raises InvalidKey.

        Never write to it: a blob that is there does not change.  It may be removed at any time.
        """
        ...


@attrs.frozen(kw_only=True)
class UnfinishedUpload:
    """An upload that was begun and neither completed nor aborted: it has no object, but it costs space."""

    key: str
    """What the object would be called."""
    id: str
    """What the storage calls the upload; means nothing elsewhere."""
    started: float | None = None
    """Seconds since the epoch; None where the storage does not tell."""


@runtime_checkable
class SupportsUploads(Protocol):
    """Large objects arrive in parts, which stay in the storage unseen if the writer is killed."""

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        """Give every unfinished upload of this storage, also those that a writer is busy with; raises StorageError."""
        ...

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that is finished or gone is success; raises StorageError."""
        ...


@runtime_checkable
class SupportsPublish(Protocol):
    """An object gets another key inside the storage; its bytes do not pass through this machine."""

    def publish(self, staged: str, digest: Digest) -> None:
        """Make the object under the key *staged*, which is in ``staging/``, the blob *digest*.

        The blob is there whole or not at all, in the place of an equal one; afterwards the staged
        object is gone.  Whether the bytes hash to *digest* is not looked at.

        Raises:
            InvalidKey: If *staged* is not a key of ``staging/``.
            ObjectNotFound: If there is no such object.
            StorageError: Where the storage fails; the staged object may still be there.
        """
        ...


@runtime_checkable
class SupportsCreateIfAbsent(Protocol):
    """The storage itself can decide which of several writers comes first."""

    def creates_atomically(self) -> bool:
        """Return whether of all callers of ``create``, on any machines, exactly one creates.

        Where it is False, ``create`` looks first and writes then: of two callers in the same
        moment both may be told that they created, and the last content stays.  May ask the
        storage, once; raises StorageError.
        """
        ...


@runtime_checkable
class SupportsEvents(Protocol):
    """The backend has something to tell while it works: that it had to try again."""

    def with_events(self, on_event: EventCallback) -> Backend:
        """Return a backend over the same storage and connections that tells *on_event*; this one stays silent."""
        ...


def with_events(backend: Backend, on_event: EventCallback) -> Backend:
    """Return *backend* so that it tells *on_event* what happens, if it can.

    >>> from nixery_core.events import ignore_events
    >>> from nixery_core.storage.plugins import open_backend
    >>> with_events(open_backend("memory://quiet"), ignore_events)
    FsspecBackend('memory://quiet')
    """
    return backend.with_events(on_event) if isinstance(backend, SupportsEvents) else backend

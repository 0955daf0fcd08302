"""The promises of a backend, kept with the requests of an object store."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Iterator
from typing import Literal, Self, get_args

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError
from nixery_core.events import EventCallback
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import BackendRef, ObjectInfo
from nixery_core.storage.keys import BLOBS, blob_key, check_key, check_prefix, check_staging_key, staging_key
from nixery_core.storage.object_store import ObjectHeaders, ObjectStore
from nixery_core.storage.part_writer import PartWriter
from nixery_core.storage.spool_writer import SpoolWriter

LargeBlobs = Literal["auto", "stage", "spool"]
"""Where blobs that take several requests wait for their digest."""
LARGE_BLOBS: tuple[LargeBlobs, ...] = get_args(LargeBlobs)
BLOCK = 8 << 20
"""Bytes that are fetched at once."""
LONGEST_URL = 7 * 24 * 3600
"""Seconds that a signed URL may be good for: what S3 and GCS allow."""


class ObjectStoreBackend:
    """Keeps objects in a bucket; a :class:`~nixery_core.storage.backend.Backend` for others to build on.

    Blobs up to 8 MiB are put under their key in one request.

    Args:
        ref: How to open it again.
        store: The bucket.
        large_blobs: What becomes of larger ones.  ``stage``: they are uploaded in parts to
            ``staging/`` while they are written, and copied into their place inside the service.
            ``spool``: they wait in an unnamed temporary file of this machine, and are uploaded once,
            under their key.  ``auto``: the second where this machine has the room, else the first.
    """

    def __init__(self, ref: BackendRef, store: ObjectStore, *, large_blobs: LargeBlobs = "auto") -> None:
        self._ref = ref
        self._store = store
        self._large_blobs = large_blobs
        self._decides = False
        # of the threads of one process at least, one creates at a time
        self._creating = _PerProcessLock()

    @property
    def ref(self) -> BackendRef:
        """How to open this backend again, on any machine that reaches the service."""
        return self._ref

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redact(self._ref.url)!r})"

    def with_events(self, on_event: EventCallback) -> Self:
        """Return a backend over the same bucket and connections that tells *on_event* of what it sends again."""
        again = copy.copy(self)
        again._store = self._store.with_events(on_event)
        return again

    def open_blob(self) -> PartWriter | SpoolWriter:
        """Begin a blob."""
        if self._large_blobs == "stage":
            return self._staged()
        return SpoolWriter(self._store, self._staged if self._large_blobs == "auto" else None)

    def _staged(self) -> PartWriter:
        return PartWriter(self._store, self.publish_upload)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        """Put a small object if there is none under *key*; return whether this call created it."""
        headers = ObjectHeaders.of(check_key(key), content_type)
        if self._knows_that_it_decides():
            return self._store.put(key, data, headers, only_new=True)
        with self._creating.held():
            if self._store.stat(key) is not None:
                return False
            created = self._store.put(key, data, headers, only_new=True)
            # no is an answer that only a service gives which obeys
            self._decides = self._decides or not created
            return created

    def replace(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Put a small object, atomically in the place of what is there."""
        self._store.put(check_key(key), data, ObjectHeaders.of(key, content_type))

    def get(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFound."""
        return self._store.get(check_key(key))

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the bytes of an object from *start* to before *end* in pieces; raises ObjectNotFound.

        What is not there raises at once, before the first piece is asked for.
        """
        start = max(start, 0)
        if end is not None and end <= start:
            if self.stat(key) is None:
                raise ObjectNotFound(f"there is no object {key}", key=key)
            return iter(())
        first = self._store.get_range(check_key(key), start, min(start + BLOCK, end or start + BLOCK))
        stop = first.size if end is None else min(end, first.size)
        # a blob that is put again meanwhile has the same bytes
        version = "" if key.startswith(BLOBS) else first.version
        return self._pieces(key, first.data, start, stop, version)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        return self._store.stat(check_key(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give every object whose key begins with *prefix* (which ends with ``/``, or is empty), sorted by key."""
        return self._store.list(check_prefix(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        self._store.delete(check_key(key))

    def publish(self, staged: str, digest: Digest) -> None:
        """Make the object under the key *staged*, which is in ``staging/``, the blob *digest*."""
        info = self._store.stat(check_staging_key(staged))
        if info is None:
            raise ObjectNotFound(f"there is no object {staged}", key=staged)
        key = blob_key(digest)
        self._store.copy(staged, key, info.size, ObjectHeaders.of(key))
        self._store.delete(staged)

    def publish_upload(self, staged: str, digest: Digest, size: int) -> None:
        """Publish the *size* bytes that were uploaded to *staged*; nothing is left of it in any case."""
        try:
            key = blob_key(digest)
            self._store.copy(staged, key, size, ObjectHeaders.of(key))
            self._store.delete(staged)
        except BaseException:
            # the first error is the one to tell
            with contextlib.suppress(StorageError):
                self._store.delete(staged)
            raise

    def signed_url(
        self, key: str, *, method: Literal["GET", "HEAD"] = "GET", expires: int = 3600, content_type: str | None = None
    ) -> str | None:
        """Return a URL that answers *method* for an object, or None: serve it yourself."""
        if method not in ("GET", "HEAD"):
            raise InvalidConfig(f"no URL is signed for the method {method}", hint="take GET or HEAD")
        if not 0 < expires <= LONGEST_URL:
            raise InvalidConfig(
                f"a signed URL cannot be good for {expires} seconds", hint=f"take 1 to {LONGEST_URL}, seven days"
            )
        return self._store.signed_url(check_key(key), method, expires, content_type)

    def creates_atomically(self) -> bool:
        """Return whether the service obeys the condition of ``create``; one that is not known is tried."""
        if not self._knows_that_it_decides():
            probe = staging_key()
            headers = ObjectHeaders.of(probe)
            try:
                self._store.put(probe, b"", headers)
                self._decides = not self._store.put(probe, b"", headers, only_new=True)
            finally:
                self._store.delete(probe)
        return self._decides

    def _knows_that_it_decides(self) -> bool:
        self._decides = self._decides or self._store.decides
        return self._decides

    def _pieces(self, key: str, piece: bytes, start: int, stop: int, version: str) -> Iterator[bytes]:
        while True:
            if piece:
                yield piece
            start += len(piece)
            if start >= stop:
                return
            piece = self._store.get_range(key, start, min(start + BLOCK, stop), version).data
            if not piece:
                raise StorageError(f"the object {key} became shorter while it was read", key=key)


class _PerProcessLock:
    """A lock that a child process does not inherit locked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def held(self) -> threading.Lock:
        if self._owner != os.getpid():
            self._lock, self._owner = threading.Lock(), os.getpid()
        return self._lock

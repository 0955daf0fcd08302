"""One bucket of Google Cloud Storage, by its JSON API (https://cloud.google.com/storage/docs/json_api)."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import attrs
import google_crc32c
from google.auth.credentials import Signing

from nixery_backend_gcs import _errors
from nixery_backend_gcs._connection import Answer, Connection
from nixery_core.errors import ObjectNotFound, StorageError
from nixery_core.events import EventCallback
from nixery_core.storage.backend import ObjectInfo
from nixery_core.storage.bucket_tools import only_our_errors
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.object_store import ObjectHeaders, Piece
from nixery_core.storage.retrying import Retrying

PAGE = 1000
"""Entries of a listing that are asked for at once."""
ALIGN = 256 << 10
"""What GCS keeps of an upload that breaks off is a multiple of that (docs, "Resumable uploads")."""

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Place:
    """Which part of which bucket, and how to get there."""

    url: str
    bucket: str
    prefix: str
    """Empty, or ends with a slash."""
    options: Mapping[str, Any] = attrs.field(repr=False)
    """Of GCSFileSystem."""

    def secrets(self) -> list[str]:
        """Return what no error may show."""
        token = self.options.get("token")
        if isinstance(token, str):
            # the name of a way to find credentials, a file, or an access token
            return [token] if len(token) > 20 and not token.endswith(".json") else []
        fields = token if isinstance(token, dict) else {}
        return [str(fields[name]) for name in ("private_key", "refresh_token", "client_secret") if fields.get(name)]


class GcsStore:
    """An :class:`~nixery_core.storage.object_store.ObjectStore` in a bucket of GCS."""

    # an upload goes on where it stopped: parts follow each other
    parallel_parts = 1

    def __init__(self, place: Place, retrying: Retrying, connection: Connection | None = None) -> None:
        self._place = place
        self._retrying = retrying
        self._connection = Connection(place.options) if connection is None else connection
        self._sums: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def decides(self) -> bool:
        """Whether the bucket is Google's, which obeys ifGenerationMatch; emulators may not."""
        with self._mapped(""):
            return self._connection.is_google

    def with_events(self, on_event: EventCallback) -> GcsStore:
        """Return the same store, telling *on_event* of requests that are sent again."""
        return GcsStore(self._place, attrs.evolve(self._retrying, on_event=on_event), self._connection)

    def put(self, key: str, data: bytes | bytearray, headers: ObjectHeaders, *, only_new: bool = False) -> bool:
        """Put an object whole; with *only_new* only where there is none; return whether it was put."""
        # the service refuses bytes that have another checksum
        resource = {**self._resource(key, headers), "crc32c": _base64(google_crc32c.value(bytes(data)))}
        content_type, body = _multipart(resource, headers.content_type, data)
        params = {"uploadType": "multipart"} | ({"ifGenerationMatch": "0"} if only_new else {})
        tries = 0

        def send(attempt: int) -> bool:
            nonlocal tries
            tries = attempt
            url = self._connection.url("b", self._place.bucket, "o", upload=True)
            self._connection.request("POST", url, params=params, headers={"Content-Type": content_type}, data=body)
            return True

        with self._mapped(key):
            try:
                return self._again("create" if only_new else "put", key, send)
            except _errors.Refused as error:
                self._explain_missing_bucket(error)
                if not only_new or not _errors.is_status(error, 412):
                    raise
        # the first try may have arrived although its answer did not
        return tries > 1 and self.get(key) == data

    def get(self, key: str) -> bytes:
        """Return an object whole; raises ObjectNotFound."""
        return self._media(key, {}, {}).body

    def get_range(self, key: str, start: int, end: int, version: str = "") -> Piece:
        """Return the bytes from *start* to before *end*, or as many as there are."""
        condition = {"ifGenerationMatch": version} if version else {}
        answer = self._media(key, {"Range": f"bytes={start}-{end - 1}"}, condition)
        if answer.status == 412:
            raise StorageError(
                f"{key} in {self._place.url} was replaced while it was read", key=key, hint="read it again"
            )
        found = answer.headers.get("X-Goog-Generation", "")
        if answer.status == 416:
            info = self.stat(key)
            return Piece(b"", info.size if info else 0, found)
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            # a server that knows no ranges sends all
            return Piece(answer.body[start:end], len(answer.body), found)
        return Piece(answer.body, int(total), found)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        try:
            return _info(key, self._json("stat", key, "GET", self._object(key)))
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give the objects whose keys begin with *prefix*, in the order of the bytes of their keys."""
        found = self._pages(prefix)
        # Google promises the order; others may not
        return found if self.decides else iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        with self._mapped(key):
            self._again("delete", key, lambda _: self._connection.request("DELETE", self._object(key), good=(404,)))

    def copy(self, source: str, target: str, size: int, headers: ObjectHeaders) -> None:  # noqa: ARG002
        """Copy an object inside the service; the target is there whole or not at all."""
        bucket = self._place.bucket
        url = self._connection.url(
            "b", bucket, "o", self._key(source), "rewriteTo", "b", bucket, "o", self._key(target)
        )
        resource = {"contentType": headers.content_type, "cacheControl": headers.cache_control}
        params: dict[str, str] = {}
        while True:
            # a large object that moves to another class or place takes several calls
            answer = self._json("copy", target, "POST", url, params=params, json=resource)
            if answer.get("done", True):
                return
            params = {"rewriteToken": str(answer["rewriteToken"])}

    def start_upload(self, key: str, headers: ObjectHeaders) -> UnfinishedUpload:
        """Begin an object that arrives in parts."""

        def send(_: int) -> Answer:
            return self._connection.request(
                "POST",
                self._connection.url("b", self._place.bucket, "o", upload=True),
                params={"uploadType": "resumable"},
                headers={"X-Upload-Content-Type": headers.content_type},
                json=self._resource(key, headers),
            )

        with self._mapped(key):
            try:
                session = self._again("start upload", key, send).headers["Location"]
            except _errors.Refused as error:
                self._explain_missing_bucket(error)
                raise
        with self._lock:
            self._sums[session] = 0
        return UnfinishedUpload(key=key, id=session)

    def upload_part(
        self,
        upload: UnfinishedUpload,
        number: int,  # noqa: ARG002 - the offset says it all
        offset: int,
        data: bytes | bytearray,
        *,
        last: bool,
    ) -> str:
        """Send the bytes from *offset* on; what was accepted of them before the connection broke is not sent again."""
        end = offset + len(data)
        total = str(end) if last else "*"
        accepted = offset

        def send(attempt: int) -> None:
            nonlocal accepted
            if attempt > 1:
                accepted = self._accepted(upload, total, end)
            while accepted < end:
                answer = self._connection.request(
                    "PUT",
                    upload.id,
                    headers={"Content-Range": f"bytes {accepted}-{end - 1}/{total}"},
                    data=memoryview(data)[accepted - offset :],
                )
                accepted = _received(answer, end)

        with self._mapped(upload.key):
            self._again("upload part", upload.key, send)
        with self._lock:
            self._sums[upload.id] = google_crc32c.extend(self._sums.get(upload.id, 0), bytes(data))
        return ""

    def complete_upload(self, upload: UnfinishedUpload, parts: tuple[str, ...], size: int) -> None:  # noqa: ARG002
        """Check that what arrived is what was sent; the last part has completed the object."""
        with self._lock:
            expected = _base64(self._sums.pop(upload.id))
        found = self._json("complete upload", upload.key, "GET", self._object(upload.key))
        if int(found["size"]) != size or found.get("crc32c", expected) != expected:
            self.delete(upload.key)
            raise StorageError(f"{upload.key} in {self._place.url}: other bytes arrived than were sent", key=upload.key)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that is finished or gone is success."""
        with self._lock:
            self._sums.pop(upload.id, None)
        with self._mapped(upload.key):
            # 499 is success; a server that does not know how forgets uploads by itself, as Google does in a week
            self._again(
                "abort upload",
                upload.key,
                lambda _: self._connection.request("DELETE", upload.id, good=(404, 405, 410, 499, 501)),
            )
        # the last part may have completed it
        self.delete(upload.key)

    def signed_url(
        self, key: str, method: Literal["GET", "HEAD"], expires: int, content_type: str | None
    ) -> str | None:
        """Return a URL that answers *method*, or None where the credentials cannot sign."""
        with self._mapped(key):
            fs = self._connection.fs
            if not isinstance(fs.credentials.credentials, Signing):
                return None
            # imported here, because it takes a while
            from google.cloud import storage

            client = storage.Client(credentials=fs.credentials.credentials, project=fs.project or "none")
            blob = client.bucket(self._place.bucket).blob(self._key(key))
            return str(
                blob.generate_signed_url(
                    version="v4",
                    expiration=timedelta(seconds=expires),
                    method=method,
                    response_type=content_type,
                    api_access_endpoint=fs._endpoint or "https://storage.googleapis.com",
                )
            )

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        params = {"prefix": self._key(prefix), "maxResults": str(PAGE)}
        url = self._connection.url("b", self._place.bucket, "o")
        while True:
            answer = self._json("list", prefix, "GET", url, params=params)
            for found in answer.get("items") or ():
                key = str(found["name"]).removeprefix(self._place.prefix)
                # an object such as "folder/" is how some tools show a folder
                if key and not key.endswith("/"):
                    yield _info(key, found)
            if "nextPageToken" not in answer:
                return
            params["pageToken"] = str(answer["nextPageToken"])

    def _media(self, key: str, headers: Mapping[str, str], params: Mapping[str, str]) -> Answer:
        def send(_: int) -> Answer:
            return self._connection.request(
                "GET", self._object(key), params={"alt": "media", **params}, headers=headers, good=(412, 416)
            )

        with self._mapped(key):
            try:
                return self._again("get", key, send)
            except _errors.Refused as error:
                self._explain_missing_bucket(error)
                raise

    def _accepted(self, upload: UnfinishedUpload, total: str, end: int) -> int:
        """Return how many bytes of an upload the service has (docs, "Check the status of a resumable upload")."""
        answer = self._connection.request("PUT", upload.id, headers={"Content-Range": f"bytes */{total}"}, data=b"")
        return _received(answer, end)

    def _explain_missing_bucket(self, error: _errors.Refused) -> None:
        """Raise if there is no bucket: not every server says what it is that is not there."""
        if not _errors.is_status(error, 404) or self._connection.bucket_seen:
            return
        try:
            self._again(
                "look for the bucket",
                "",
                # who may not ask this may still read and write
                lambda _: self._connection.request(
                    "GET", self._connection.url("b", self._place.bucket), good=(401, 403)
                ),
            )
        except _errors.Refused as missing:
            if not _errors.is_status(missing, 404):
                raise
            said, hint = _errors.no_bucket(self._place.bucket)
            raise StorageError(f"{self._place.url}: {said}", hint=hint) from missing
        self._connection.bucket_seen = True

    def _json(self, what: str, key: str, method: str, url: str, **request: Any) -> dict[str, Any]:
        with self._mapped(key):
            try:
                answer = self._again(what, key, lambda _: self._connection.request(method, url, **request))
            except _errors.Refused as error:
                self._explain_missing_bucket(error)
                raise
            found: dict[str, Any] = json.loads(answer.body or b"{}")
        return found

    def _object(self, key: str) -> str:
        return self._connection.url("b", self._place.bucket, "o", self._key(key))

    def _resource(self, key: str, headers: ObjectHeaders) -> dict[str, str]:
        return {
            "name": self._key(key),
            "contentType": headers.content_type,
            "cacheControl": headers.cache_control,
        }

    def _key(self, key: str) -> str:
        return self._place.prefix + key

    def _again(self, what: str, key: str, send: Callable[[int], _T]) -> _T:
        return self._retrying(what, key, send, self._is_transient)

    def _is_transient(self, error: Exception) -> bool:
        # a server that was there may be starting again; an address that never answered is a typing error
        return _errors.is_transient(error) or (self._connection.reached and _errors.is_unreachable(error))

    def _mapped(self, key: str) -> AbstractContextManager[None]:
        place = self._place
        return only_our_errors(
            lambda error: _errors.mapped(error, key=key, url=place.url, bucket=place.bucket, secrets=place.secrets())
        )


def _received(answer: Answer, end: int) -> int:
    if answer.status != 308:
        return end
    last = answer.headers.get("Range", "").rpartition("-")[2]
    received = int(last) + 1 if last.isdigit() else 0
    return received - received % ALIGN


def _multipart(resource: object, content_type: str, data: bytes | bytearray) -> tuple[str, bytes]:
    """Return the type and the body of a request that holds an object and what is said of it."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(resource)}\r\n"
        f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n"
    )
    return f"multipart/related; boundary={boundary}", b"".join(
        [head.encode(), data, f"\r\n--{boundary}--\r\n".encode()]
    )


def _info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    updated = found.get("updated")
    return ObjectInfo(key, int(found["size"]), datetime.fromisoformat(str(updated)).timestamp() if updated else None)


def _base64(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()

"""One bucket of S3, or of a server that speaks its protocol, through the client of s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import attrs

from nixery_backend_s3 import _errors
from nixery_backend_s3._connection import Connection, Place
from nixery_core.errors import StorageError
from nixery_core.events import EventCallback
from nixery_core.storage.backend import ObjectInfo
from nixery_core.storage.bucket_tools import only_our_errors
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.object_store import ObjectHeaders, Piece
from nixery_core.storage.retrying import Retrying

COPY_LIMIT = 5 << 30
"""What one CopyObject can do (S3 User Guide, "Copying, moving, and renaming objects")."""
COPY_AT_ONCE = 512 << 20
"""Above this size Amazon is asked for parts, which it copies side by side; other servers gain nothing."""
COPY_PART = 256 << 20
COPIES_AT_ONCE = 8
PAGE = 1000
"""Entries of a listing that are asked for at once; S3 gives no more."""

_T = TypeVar("_T")


class S3Store:
    """An :class:`~nixery_core.storage.object_store.ObjectStore` in a bucket of S3."""

    parallel_parts = 4

    def __init__(self, place: Place, retrying: Retrying, connection: Connection | None = None) -> None:
        self._place = place
        self._retrying = retrying
        # what is learnt of the server is kept there: all stores of one connection know it
        self._connection = Connection(place.options) if connection is None else connection

    @property
    def decides(self) -> bool:
        """Whether the server obeys If-None-Match: Amazon's do since 2024, of others it shows."""
        return self._connection.obeys or self._is_amazon()

    def with_events(self, on_event: EventCallback) -> S3Store:
        """Return the same store, telling *on_event* of requests that are sent again."""
        return S3Store(self._place, attrs.evolve(self._retrying, on_event=on_event), self._connection)

    def put(self, key: str, data: bytes | bytearray, headers: ObjectHeaders, *, only_new: bool = False) -> bool:
        """Put an object whole; with *only_new* only where there is none; return whether it was put."""
        parameters = {"Key": self._key(key), "Body": data, **_headers(headers)}
        if not only_new:
            self._send("put", key, "put_object", **parameters)
            return True
        tries = 0

        def send(attempt: int) -> bool:
            nonlocal tries
            tries = attempt
            self._request("put_object", IfNoneMatch="*", **parameters)
            return True

        with self._mapped(key):
            try:
                return self._retrying("create", key, send, self._is_transient)
            except Exception as error:
                if _errors.is_not_implemented(error):
                    # whoever calls has looked before
                    self._request("put_object", **parameters)
                    return True
                if not _errors.is_precondition(error):
                    raise
                self._connection.obeys = True
        # the first try may have arrived although its answer did not
        return tries > 1 and self.get(key) == data

    def get(self, key: str) -> bytes:
        """Return an object whole; raises ObjectNotFound."""
        return bytes(self._send("get", key, "get_object", Key=self._key(key))["Body"])

    def get_range(self, key: str, start: int, end: int, version: str = "") -> Piece:
        """Return the bytes from *start* to before *end*, or as many as there are."""
        condition = {"IfMatch": version} if version else {}
        with self._mapped(key):
            try:
                answer = self._again(
                    "get", key, "get_object", Key=self._key(key), Range=f"bytes={start}-{end - 1}", **condition
                )
            except Exception as error:
                if _errors.is_precondition(error):
                    raise StorageError(
                        f"{key} in {self._place.url} was replaced while it was read", key=key, hint="read it again"
                    ) from error
                if _errors.code(error) not in ("InvalidRange", "416"):
                    raise
                head = self._again("stat", key, "head_object", Key=self._key(key))
                return Piece(b"", int(head["ContentLength"]), str(head.get("ETag", "")))
        data = bytes(answer["Body"])
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        if not total.isdigit():
            # a server that knows no ranges sends all
            return Piece(data[start:end], len(data), str(answer.get("ETag", "")))
        return Piece(data, int(total), str(answer.get("ETag", "")))

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        with self._mapped(key):
            try:
                head = self._again("stat", key, "head_object", Key=self._key(key))
            except Exception as error:
                if not _errors.is_no_key(error):
                    raise
                self._check_bucket()
                return None
        return ObjectInfo(key, int(head["ContentLength"]), head["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give the objects whose keys begin with *prefix*, in the order of the bytes of their keys."""
        found = self._pages(prefix)
        # Amazon promises the order; others walk folders
        return found if self._is_amazon() else iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is success."""
        with self._mapped(key):
            try:
                self._again("delete", key, "delete_object", Key=self._key(key))
            except Exception as error:
                if not _errors.is_no_key(error):
                    raise

    def copy(self, source: str, target: str, size: int, headers: ObjectHeaders) -> None:
        """Copy an object of *size* bytes inside the service; the target is there whole or not at all."""
        if size > (COPY_AT_ONCE if self._is_amazon() else COPY_LIMIT) and self._copy_in_parts(
            source, target, size, headers
        ):
            return
        self._send(
            "copy",
            target,
            "copy_object",
            Key=self._key(target),
            CopySource={"Bucket": self._place.bucket, "Key": self._key(source)},
            MetadataDirective="REPLACE",
            **_headers(headers),
        )

    def start_upload(self, key: str, headers: ObjectHeaders) -> UnfinishedUpload:
        """Begin an object that arrives in parts."""
        answer = self._send("start upload", key, "create_multipart_upload", Key=self._key(key), **_headers(headers))
        return UnfinishedUpload(key=key, id=str(answer["UploadId"]))

    def upload_part(
        self,
        upload: UnfinishedUpload,
        number: int,
        offset: int,  # noqa: ARG002 - the number says it all
        data: bytes | bytearray,
        *,
        last: bool,  # noqa: ARG002
    ) -> str:
        """Send part *number*, from 1 on; return its ETag."""
        answer = self._send(
            "upload part",
            upload.key,
            "upload_part",
            Key=self._key(upload.key),
            UploadId=upload.id,
            PartNumber=number,
            Body=data,
        )
        return str(answer["ETag"])

    def complete_upload(self, upload: UnfinishedUpload, parts: tuple[str, ...], size: int) -> None:
        """Make the object of its parts, in their order; it is there whole or not at all."""
        tags = [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(parts, 1)]
        with self._mapped(upload.key):
            try:
                answer = self._again(
                    "complete upload",
                    upload.key,
                    "complete_multipart_upload",
                    Key=self._key(upload.key),
                    UploadId=upload.id,
                    MultipartUpload={"Parts": tags},
                )
            except Exception as error:
                # it may be complete although the first answer did not arrive
                if _errors.code(error) != "NoSuchUpload":
                    raise
                info = self.stat(upload.key)
                if info is None or info.size != size:
                    raise
                return
            # the tag of an object that was made of parts ends with their number; to look the size up is dear
            # where the server hashes the whole object to answer (S3 API, "CompleteMultipartUpload")
            if str(answer.get("ETag")).strip('"').rpartition("-")[2] != str(len(parts)):
                self._check_size(upload.key, size)

    def _check_size(self, key: str, size: int) -> None:
        info = self.stat(key)
        if info is None or info.size != size:
            # under its digest it would be served for ever
            self.delete(key)
            found = "nothing" if info is None else f"{info.size} bytes"
            raise StorageError(f"{key} in {self._place.url}: {size} bytes were sent, and {found} arrived", key=key)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that is finished or gone is success."""
        with self._mapped(upload.key):
            try:
                self._again(
                    "abort upload",
                    upload.key,
                    "abort_multipart_upload",
                    Key=self._key(upload.key),
                    UploadId=upload.id,
                )
            except Exception as error:
                if _errors.code(error) != "NoSuchUpload" and not _errors.is_no_key(error):
                    raise

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        """Give every unfinished upload under our prefix."""
        markers: dict[str, str] = {}
        while True:
            with self._mapped(""):
                try:
                    answer = self._again(
                        "list uploads",
                        "",
                        "list_multipart_uploads",
                        Prefix=self._place.prefix,
                        MaxUploads=PAGE,
                        **markers,
                    )
                except Exception as error:
                    # what the server of rclone says of a bucket without any; some servers cannot tell at all
                    if _errors.code(error) != "NoSuchUpload" and not _errors.is_not_implemented(error):
                        raise
                    return
            for found in answer.get("Uploads") or ():
                name = str(found["Key"])
                if name.startswith(self._place.prefix):
                    started = found.get("Initiated")
                    yield UnfinishedUpload(
                        key=name.removeprefix(self._place.prefix),
                        id=str(found["UploadId"]),
                        started=started.timestamp() if started else None,
                    )
            if not answer.get("IsTruncated"):
                return
            markers = {
                "KeyMarker": str(answer["NextKeyMarker"]),
                "UploadIdMarker": str(answer["NextUploadIdMarker"]),
            }

    def signed_url(
        self, key: str, method: Literal["GET", "HEAD"], expires: int, content_type: str | None
    ) -> str | None:
        """Return a URL that answers *method*; a HEAD is signed for itself, as S3 demands."""
        connection = self._connection
        if self._place.public_endpoint_url is not None:
            # the host is a part of what is signed
            connection = Connection({**self._place.options, "endpoint_url": self._place.public_endpoint_url})
        parameters = {"Key": self._key(key)}
        if content_type is not None:
            parameters["ResponseContentType"] = content_type
        operation = "head_object" if method == "HEAD" else "get_object"
        with self._mapped(key):
            return connection.sign(operation, self._place.bucket, expires, parameters)

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        token: dict[str, str] = {}
        while True:
            answer = self._send("list", prefix, "list_objects_v2", Prefix=self._key(prefix), MaxKeys=PAGE, **token)
            for found in answer.get("Contents") or ():
                key = str(found["Key"]).removeprefix(self._place.prefix)
                # an object such as "folder/" is how some tools show a folder
                if key and not key.endswith("/"):
                    yield ObjectInfo(key, int(found["Size"]), found["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": str(answer["NextContinuationToken"])}

    def _copy_in_parts(self, source: str, target: str, size: int, headers: ObjectHeaders) -> bool:
        """Copy many ranges at once; return whether the server is able to."""
        upload = self.start_upload(target, headers)
        starts = range(0, size, COPY_PART)

        def copy(start: int) -> str:
            answer = self._send(
                "copy part",
                target,
                "upload_part_copy",
                Key=self._key(target),
                UploadId=upload.id,
                PartNumber=start // COPY_PART + 1,
                CopySource={"Bucket": self._place.bucket, "Key": self._key(source)},
                CopySourceRange=f"bytes={start}-{min(start + COPY_PART, size) - 1}",
            )
            # a server that does not know the request takes it for an empty part
            return str(answer.get("CopyPartResult", {}).get("ETag", ""))

        try:
            # the first one alone, because a server that does not know how will not learn it
            first = copy(0)
            if not first:
                self.abort_upload(upload)
                return False
            with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="nixery-core-copy") as pool:
                copies = [pool.submit(copy, start) for start in starts[1:]]
                try:
                    parts = (first, *(one.result() for one in copies))
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
            self.complete_upload(upload, parts, size)
        except BaseException:
            # the first error is the one to tell
            with suppress(StorageError):
                self.abort_upload(upload)
            raise
        return True

    def _is_amazon(self) -> bool:
        with self._mapped(""):
            host = urlsplit(self._connection.endpoint()).hostname or ""
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def _check_bucket(self) -> None:
        """Raise if there is no bucket: a HEAD says no more than 404, of a bucket as of an object."""
        if self._connection.bucket_seen:
            return
        try:
            self._again("look for the bucket", "", "head_bucket")
        except Exception as error:
            if _errors.is_no_key(error):
                raise self._no_bucket() from error
            # who may not ask this may still read and write
            if _errors.status(error) not in (400, 403, 405, 501):
                raise
        self._connection.bucket_seen = True

    def _no_bucket(self) -> StorageError:
        return StorageError(
            f"{self._place.url}: there is no bucket {self._place.bucket}",
            hint="create the bucket, or check its name, the region and the endpoint",
        )

    def _key(self, key: str) -> str:
        return self._place.prefix + key

    def _send(self, what: str, key: str, operation: str, **parameters: Any) -> dict[str, Any]:
        with self._mapped(key):
            return self._again(what, key, operation, **parameters)

    def _again(self, what: str, key: str, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._retrying(what, key, lambda _: self._request(operation, **parameters), self._is_transient)

    def _request(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._connection.request(operation, self._place.bucket, parameters)

    def _is_transient(self, error: Exception) -> bool:
        # a server that was there may be starting again; an address that never answered is a typing error
        return _errors.is_transient(error) or (self._connection.reached and _errors.is_unreachable(error))

    def _mapped(self, key: str) -> AbstractContextManager[None]:
        place = self._place
        return only_our_errors(
            lambda error: _errors.mapped(error, key=key, url=place.url, bucket=place.bucket, secrets=place.secrets())
        )


def _headers(headers: ObjectHeaders) -> dict[str, str]:
    return {"ContentType": headers.content_type, "CacheControl": headers.cache_control}

"""What S3 keeps of an object beside its bytes, how it is copied, and who may fetch it."""

from __future__ import annotations

import http.client
import os
import re
import time
from urllib.parse import urlsplit

import nixery_backend_s3._store as store_module
import pytest
from nixery_backend_s3 import S3Backend, open_backend

from nixery_core.errors import InvalidConfig, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage.capabilities import (
    SupportsCreateIfAbsent,
    SupportsPublish,
    SupportsSignedUrls,
    SupportsUploads,
)
from nixery_core.storage.keys import blob_key, staging_key
from nixery_core.storage.object_store import ObjectHeaders

LARGE = 17 << 20


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request(method, f"{parts.path}?{parts.query}", headers=headers or {})
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


@pytest.fixture
def backend(server) -> S3Backend:
    """An empty storage under a prefix; large blobs go through staging."""
    return open_backend(f"s3://{server.new_bucket()}/prefix", **server.options, large_blobs="stage")


def put(backend: S3Backend, data: bytes) -> str:
    writer = backend.open_blob()
    writer.write(data)
    writer.commit(Digest.of(data))
    return blob_key(Digest.of(data))


def head(server, backend: S3Backend, key: str) -> dict[str, object]:
    bucket = urlsplit(backend.ref.url).netloc
    return server.fs().call_s3("head_object", Bucket=bucket, Key=f"prefix/{key}")


class TestHeaders:
    @pytest.mark.parametrize("size", [0, 10, LARGE])
    def test_blobs_may_be_cached_for_ever(self, server, backend: S3Backend, size: int) -> None:
        """A blob never changes, whether it came in one piece or was copied into its place; also an empty one."""
        found = head(server, backend, put(backend, os.urandom(size)))
        assert found["ContentType"] == "application/octet-stream"
        if server.name != "rclone":  # which keeps no Cache-Control
            assert found["CacheControl"] == "max-age=31536000, immutable"

    @pytest.mark.parametrize("data", [b"", b"{}"])
    def test_what_may_change_is_not_cached(self, moto, data: bytes) -> None:
        """A small object has the type that it was given, and is never kept by anyone in between."""
        backend = open_backend(f"s3://{moto.new_bucket()}/prefix", **moto.options)
        backend.create("cache/layers/k", data, content_type="application/json")
        backend.replace("index.json", data, content_type="application/vnd.oci.image.index.v1+json")
        assert head(moto, backend, "cache/layers/k")["ContentType"] == "application/json"
        found = head(moto, backend, "index.json")
        assert found["ContentType"] == "application/vnd.oci.image.index.v1+json"
        assert found["CacheControl"] == "no-store"


class TestSignedUrls:
    def test_get(self, server, backend: S3Backend) -> None:
        """A signed URL gives the object to a client that knows nothing else, whole or a range of it."""
        key = put(backend, b"0123456789")
        url = backend.signed_url(key, content_type="application/vnd.oci.image.layer.v1.tar+gzip")
        answer = fetch(url)
        assert (answer.status, answer.body) == (200, b"0123456789")
        assert answer.headers["Content-Type"] == "application/vnd.oci.image.layer.v1.tar+gzip"
        answer = fetch(url, headers={"Range": "bytes=2-4"})
        assert (answer.body, answer.headers["Content-Range"]) == (b"234", "bytes 2-4/10")

    def test_head_is_signed_for_itself(self, rclone) -> None:
        """A URL is good for its method only, for the server checks the signature."""
        backend = open_backend(f"s3://{rclone.new_bucket()}", **rclone.options)
        key = put(backend, b"0123456789")
        for_get, for_head = backend.signed_url(key), backend.signed_url(key, method="HEAD")
        assert fetch(for_head, "HEAD").headers["Content-Length"] == "10"
        assert fetch(for_get, "HEAD").status == 403
        assert fetch(for_head, "GET").status == 403
        assert fetch(re.sub("Signature=.", "Signature=0", for_get) + "0").status == 403

    def test_url_expires(self, rclone) -> None:
        """After its time a URL is good for nothing."""
        backend = open_backend(f"s3://{rclone.new_bucket()}", **rclone.options)
        url = backend.signed_url(put(backend, b"x"), expires=1)
        deadline = time.monotonic() + 20
        while fetch(url).status == 200 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert fetch(url).status in (400, 403)

    def test_public_endpoint(self, moto) -> None:
        """Where clients reach the server by another name, URLs are signed for that name."""
        options = {**moto.options, "public_endpoint_url": f"http://localhost:{moto.port}"}
        backend = open_backend(f"s3://{moto.new_bucket()}", **options)
        key = put(backend, b"x")
        assert backend.signed_url(key).startswith(f"http://localhost:{moto.port}/")
        assert fetch(backend.signed_url(key)).body == b"x"

    @pytest.mark.parametrize("expires", [0, -1, 604_801])
    def test_impossible_times(self, expires: int) -> None:
        """A time that S3 does not sign for is refused here."""
        with pytest.raises(InvalidConfig, match="seven days"):
            open_backend("s3://bucket", key="k", secret="s").signed_url("index.json", expires=expires)

    def test_impossible_method(self) -> None:
        """Nothing is signed that could change the storage."""
        with pytest.raises(InvalidConfig, match="PUT"):
            open_backend("s3://bucket", key="k", secret="s").signed_url("index.json", method="PUT")  # type: ignore[arg-type]


class TestCopies:
    def test_copy_in_parts(self, moto, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object that is too large for one copy is copied in parts, many at once, with its headers."""
        backend = open_backend(f"s3://{moto.new_bucket()}/prefix", **moto.options, large_blobs="stage")
        monkeypatch.setattr(store_module, "COPY_LIMIT", 10 << 20)
        monkeypatch.setattr(store_module, "COPY_PART", 5 << 20)
        data = os.urandom(22 << 20)
        key = put(backend, data)
        assert backend.get(key) == data
        assert str(head(moto, backend, key)["ETag"]).strip('"').endswith("-5")
        assert head(moto, backend, key)["CacheControl"] == "max-age=31536000, immutable"

    def test_server_that_cannot_copy_parts(self, rclone, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that takes a copied part for an empty one is found out, and asked for one copy."""
        backend = open_backend(f"s3://{rclone.new_bucket()}/prefix", **rclone.options, large_blobs="stage")
        monkeypatch.setattr(store_module, "COPY_LIMIT", 10 << 20)
        monkeypatch.setattr(store_module, "COPY_PART", 5 << 20)
        data = os.urandom(22 << 20)
        assert b"".join(backend.stream(put(backend, data))) == data
        assert list(backend.list_uploads()) == []

    def test_failed_copy_leaves_nothing(self, server, backend: S3Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the last step fails, neither blob nor staged object nor upload stays."""

        def fail(*arguments: object) -> None:
            raise StorageError("the copy failed")

        monkeypatch.setattr(store_module.S3Store, "copy", fail)
        with pytest.raises(StorageError, match="the copy failed"):
            put(backend, bytes(LARGE))
        assert list(backend.list("")) == []
        assert list(backend.list_uploads()) == []


class TestSpool:
    def test_large_blob_is_uploaded_once(self, server) -> None:
        """Where this machine has room, a large blob waits there and is uploaded under its digest."""
        backend = open_backend(f"s3://{server.new_bucket()}/prefix", **server.options)
        data = os.urandom(LARGE)
        writer = backend.open_blob()
        writer.write(data)
        assert list(backend.list_uploads()) == []
        writer.commit(Digest.of(data))
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data
        assert [info.key for info in backend.list("")] == [blob_key(Digest.of(data))]


class TestCapabilities:
    def test_all_of_a_bucket(self) -> None:
        """A bucket has every capability but local files."""
        backend = open_backend("s3://bucket", key="k", secret="s")
        assert isinstance(backend, SupportsSignedUrls)
        assert isinstance(backend, SupportsPublish)
        assert isinstance(backend, SupportsCreateIfAbsent)
        assert isinstance(backend, SupportsUploads)

    def test_create_tells_the_truth(self, server, backend: S3Backend) -> None:
        """Moto obeys If-None-Match, and the server of rclone does not; trying it out leaves nothing."""
        assert backend.creates_atomically() is (server.name == "moto")
        assert list(backend.list("")) == []

    def test_amazon_is_known(self) -> None:
        """Amazon's own servers need not be tried, nor asked whether there is an object."""
        backend = open_backend("s3://bucket", key="k", secret="s", client_kwargs={"region_name": "eu-central-1"})
        assert backend.creates_atomically()

    def test_lost_answer_of_create(self, moto, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object whose creation was not confirmed, and then refused, was created by this very call."""
        backend = open_backend(f"s3://{moto.new_bucket()}", **moto.options, retries=3)
        assert backend.creates_atomically()
        request = store_module.Connection.request
        calls = []

        def lose_the_first_answer(self, operation, bucket, parameters):
            answer = request(self, operation, bucket, parameters)
            if operation == "put_object":
                calls.append(operation)
                if len(calls) == 1:
                    raise ConnectionResetError("reset by peer")
            return answer

        monkeypatch.setattr(store_module.Connection, "request", lose_the_first_answer)
        assert backend.create("cache/layers/k", b"mine") is True
        calls.clear()
        assert backend.create("cache/layers/k", b"other") is False
        assert backend.get("cache/layers/k") == b"mine"

    def test_lost_answer_of_complete(self, server, backend: S3Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """An upload that was completed without a confirmation is complete."""
        request = store_module.Connection.request
        lost = []

        def lose_the_answer(self, operation, bucket, parameters):
            answer = request(self, operation, bucket, parameters)
            if operation == "complete_multipart_upload" and not lost:
                lost.append(operation)
                raise ConnectionResetError("reset by peer")
            return answer

        monkeypatch.setattr(store_module.Connection, "request", lose_the_answer)
        data = os.urandom(LARGE)
        assert b"".join(backend.stream(put(backend, data))) == data
        assert lost

    @pytest.mark.parametrize("large_blobs", ["stage", "spool"])
    def test_lost_part_is_noticed(self, server, monkeypatch: pytest.MonkeyPatch, large_blobs: str) -> None:
        """A blob of which less arrived than was sent is not published, and nothing of it stays."""
        backend = open_backend(f"s3://{server.new_bucket()}/prefix", **server.options, large_blobs=large_blobs)
        request = store_module.Connection.request

        def forget_one(self, operation, bucket, parameters):
            if operation == "complete_multipart_upload":
                parameters["MultipartUpload"]["Parts"].pop()
            return request(self, operation, bucket, parameters)

        monkeypatch.setattr(store_module.Connection, "request", forget_one)
        with pytest.raises(StorageError, match=r"arrived|InvalidPart"):
            put(backend, bytes(LARGE))
        assert list(backend.list("")) == []
        assert list(backend.list_uploads()) == []

    def test_size_is_looked_up_only_where_the_tag_does_not_tell(
        self, server, backend: S3Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The tag says of how many parts an object was made; a server of other tags is asked for the size."""
        request = store_module.Connection.request
        asked: list[str] = []

        def note(self, operation, bucket, parameters):
            asked.append(operation)
            answer = request(self, operation, bucket, parameters)
            return (
                {**answer, "ETag": '"of-another-kind"'} if operation.startswith("complete") and other_tags else answer
            )

        monkeypatch.setattr(store_module.Connection, "request", note)
        for other_tags in (False, True):
            asked.clear()
            put(backend, os.urandom(LARGE))
            assert ("head_object" in asked) is other_tags


class TestUploads:
    def test_abandoned_uploads_are_found_and_removed(self, server, backend: S3Backend) -> None:
        """Uploads of this storage are listed with their time; those of another prefix are not ours."""
        store = backend._uploads()
        ours = store.start_upload(staging_key(), ObjectHeaders())
        store.upload_part(ours, 1, 0, b"part", last=True)
        bucket = urlsplit(backend.ref.url).netloc
        other = open_backend(f"s3://{bucket}/other", **server.options)
        theirs = other._uploads().start_upload(staging_key(), ObjectHeaders())
        (found,) = backend.list_uploads()
        assert (found.key, found.id) == (ours.key, ours.id)
        assert found.started is not None
        if server.name != "moto":  # for which it is always 2010
            assert abs(found.started - time.time()) < 3600
        for _ in range(2):
            backend.abort_upload(found)
        assert list(backend.list_uploads()) == []
        other.abort_upload(theirs)

    def test_many_uploads(self, moto, monkeypatch: pytest.MonkeyPatch) -> None:
        """A listing of uploads goes on behind a page."""
        monkeypatch.setattr(store_module, "PAGE", 2)
        backend = open_backend(f"s3://{moto.new_bucket()}", **moto.options)
        started = [backend._uploads().start_upload(staging_key(), ObjectHeaders()) for _ in range(5)]
        assert {upload.id for upload in backend.list_uploads()} == {upload.id for upload in started}
        for upload in started:
            backend.abort_upload(upload)

    def test_many_objects(self, server, backend: S3Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A listing of many pages is whole and sorted."""
        monkeypatch.setattr(store_module, "PAGE", 7)
        fs, bucket = server.fs(), urlsplit(backend.ref.url).netloc
        fs.pipe({f"{bucket}/prefix/refs/{number:04}/_tags/v": b"" for number in range(40)})
        fs.pipe({f"{bucket}/prefix/refs/{number:04}-x/_tags/v": b"" for number in range(3)})
        found = [info.key for info in backend.list("refs/")]
        assert len(found) == 43
        assert found == sorted(found)

    def test_folder_markers_are_no_objects(self, moto) -> None:
        """What a web console makes of a folder is not taken for an object."""
        bucket = moto.new_bucket()
        backend = open_backend(f"s3://{bucket}/prefix", **moto.options)
        for key in ("prefix/", "prefix/refs/", "prefix/refs/x"):
            moto.fs().call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
        assert [info.key for info in backend.list("")] == ["refs/x"]

"""What is special about GCS: sessions, checksums, signatures, and what it says when it refuses.

The emulator has no preconditions and no way to end a session, so answers of Google's servers are
given in its place, word by word, by a proxy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import time
import urllib.request
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nixery_backend_gcs import _store, open_backend
from nixery_backend_gcs._connection import Answer, Connection

from nixery_core import open_backend as open_any
from nixery_core.errors import InvalidConfig, InvalidKey, ObjectNotFound, StorageError, StorageFull
from nixery_core.events import BuildEvent, StorageRetried
from nixery_core.model.digest import Digest
from nixery_core.storage.capabilities import SupportsSignedUrls, SupportsUploads, with_events
from nixery_core.storage.keys import blob_key
from nixery_core.storage.object_store import ObjectHeaders
from nixery_core.storage.object_store_backend import ObjectStoreBackend
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.servers import LOOPBACK, free_port

LARGE = (8 << 20) + 777
SECRET = "hunter2-hunter2"


def says(status: str, reason: str, message: str, **headers: str) -> bytes:
    code = int(status.split()[0])
    body = json.dumps({"error": {"code": code, "message": message, "errors": [{"reason": reason, "message": message}]}})
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", body]).encode()


def put(backend: ObjectStoreBackend, data: bytes) -> str:
    writer = backend.open_blob()
    writer.write(data)
    writer.commit(Digest.of(data))
    return blob_key(Digest.of(data))


def failure(call: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as raised:
        call()
    assert SECRET not in raised.value.diagnostics() + repr(raised.value)
    assert type(pickle.loads(pickle.dumps(raised.value))) is type(raised.value)
    return raised.value


@pytest.fixture
def backend(emulator) -> ObjectStoreBackend:
    """An empty storage under a prefix."""
    return open_backend(f"gs://{emulator.new_bucket()}/prefix", **emulator.options)


@pytest.fixture
def proxied(emulator) -> Iterator[tuple[ObjectStoreBackend, FaultyProxy, list[BuildEvent]]]:
    """A storage behind a proxy, the proxy, and the events of the storage."""
    events: list[BuildEvent] = []
    with FaultyProxy(emulator.port) as proxy:
        backend = open_backend(f"gs://{emulator.new_bucket()}", **emulator.at(proxy.port))
        yield with_events(backend, events.append), proxy, events


@pytest.fixture(scope="module")
def account() -> dict[str, str]:
    """A service account of our own making."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "type": "service_account",
        "client_email": "builder@test.iam.gserviceaccount.com",
        "private_key": text,
        "token_uri": "https://oauth2.googleapis.com/token",
        "project_id": "test",
    }


class TestObjects:
    def test_headers(self, emulator, backend: ObjectStoreBackend) -> None:
        """An object has its type, and says whether it may be kept."""
        backend.create("cache/layers/k", b"", content_type="application/json")
        key = put(backend, b"blob")
        for name, content_type, cache in [
            ("cache/layers/k", "application/json", "no-store"),
            (key, "application/octet-stream", "max-age=31536000, immutable"),
        ]:
            bucket = urlsplit(backend.ref.url).netloc
            url = f"http://{LOOPBACK}:{emulator.port}/storage/v1/b/{bucket}/o/prefix%2F{name.replace('/', '%2F')}"
            with urllib.request.urlopen(url) as answer:
                found = json.load(answer)
            assert (found["contentType"], found["cacheControl"]) == (content_type, cache)

    @pytest.mark.parametrize("data", [b"", b"\r\n", b"--\r\n--", bytes(range(256)) * 9, b"\n" * 1000])
    def test_any_bytes(self, backend: ObjectStoreBackend, data: bytes) -> None:
        """Whatever the bytes are, they are not taken for the frame around them."""
        assert backend.get(put(backend, data)) == data

    def test_other_bytes_are_refused(self, proxied, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes that changed on their way are noticed by the service, and by us for a large blob."""
        backend, _, _ = proxied
        monkeypatch.setattr(_store.google_crc32c, "value", lambda data: 12345)
        assert "400" in failure(lambda: backend.replace("index.json", b"x")).message
        monkeypatch.setattr(_store.google_crc32c, "extend", lambda before, data: 12345)
        assert "other bytes arrived" in failure(lambda: put(backend, bytes(LARGE))).message
        assert list(backend.list("")) == []

    def test_capabilities(self, emulator, backend: ObjectStoreBackend) -> None:
        """Sessions cannot be listed; the emulator does not obey conditions, and Google does."""
        assert isinstance(backend, SupportsSignedUrls)
        assert not isinstance(backend, SupportsUploads)
        assert not backend.creates_atomically()
        assert open_backend("gs://bucket", token="anon").creates_atomically()


class TestConditions:
    def test_condition_that_does_not_hold(self, proxied) -> None:
        """An object that is there is not created again."""
        backend, proxy, _ = proxied
        proxy.reply(says("412 Precondition Failed", "conditionNotMet", "At least one ... did not hold."), times=1)
        assert backend._store.put("cache/layers/k", b"x", ObjectHeaders(), only_new=True) is False

    def test_lost_answer_of_create(self, emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object whose creation was not confirmed, and then refused, was created by this very call."""
        backend = open_backend(f"gs://{emulator.new_bucket()}", **emulator.options)
        request, calls = Connection.request, []

        def lose_the_first_answer(self, method, url, **options):
            if options.get("params", {}).get("ifGenerationMatch") != "0":
                return request(self, method, url, **options)
            calls.append(url)
            if len(calls) > 1:
                raise _store._errors.Refused(412, b"")
            request(self, method, url, **options)
            raise ConnectionResetError("reset by peer")

        monkeypatch.setattr(Connection, "request", lose_the_first_answer)
        assert backend.create("cache/layers/k", b"mine") is True
        assert len(calls) == 2

    def test_object_that_was_replaced(self, proxied) -> None:
        """A range of another generation is refused."""
        backend, proxy, _ = proxied
        backend.replace("index.json", b"0123456789")
        proxy.reply(says("412 Precondition Failed", "conditionNotMet", "no"), times=1)
        assert "was replaced" in failure(lambda: backend._store.get_range("index.json", 0, 5, "17")).message


class TestSessions:
    def test_short_acceptance(self, backend: ObjectStoreBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the service keeps less than it was sent, the rest is sent from there on."""
        request, ranges = Connection.request, []

        def accept_half(self, method, url, **options):
            found = options.get("headers", {}).get("Content-Range", "")
            ranges.append(found)
            if found.startswith("bytes 0-8388607"):
                options["headers"] = {"Content-Range": "bytes 0-4194303/*"}
                options["data"] = options["data"][: 4 << 20]
            return request(self, method, url, **options)

        monkeypatch.setattr(Connection, "request", accept_half)
        data = os.urandom(LARGE)
        assert backend.get(put(backend, data)) == data
        assert "bytes 4194304-8388607/*" in ranges

    @pytest.mark.parametrize("kept", [0, 262_144, 8 << 20])
    def test_lost_answer_of_a_part(
        self, backend: ObjectStoreBackend, kept: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a break the service is asked what it has, and nothing is sent twice or left out."""
        request, lost = Connection.request, []

        def lose_the_answer(self, method, url, **options):
            found = options.get("headers", {}).get("Content-Range", "")
            if found.startswith("bytes 0-8388607") and not lost:
                lost.append(found)
                if kept:
                    options["headers"] = {"Content-Range": f"bytes 0-{kept - 1}/*"}
                    options["data"] = options["data"][:kept]
                    request(self, method, url, **options)
                raise ConnectionResetError("reset by peer")
            return request(self, method, url, **options)

        monkeypatch.setattr(Connection, "request", lose_the_answer)
        data = os.urandom(LARGE)
        assert backend.get(put(backend, data)) == data
        assert lost

    @pytest.mark.parametrize(
        ("answer", "received"),
        [
            (Answer(308, {"Range": "bytes=0-524287"}, b""), 524_288),
            (Answer(308, {}, b""), 0),
            # of an emulator; Google keeps multiples of 256 KiB
            (Answer(308, {"Range": "bytes=0-0"}, b""), 0),
            (Answer(200, {}, b"{}"), 999_999),
            (Answer(201, {}, b"{}"), 999_999),
        ],
    )
    def test_what_was_received(self, answer: Answer, received: int) -> None:
        """The answer to a part tells how far the upload is (docs, "Resumable uploads")."""
        assert _store._received(answer, 999_999) == received

    def test_end_of_a_session(self, proxied) -> None:
        """Google's answer to the end of a session, 499, is success."""
        backend, proxy, events = proxied
        writer = backend.open_blob()
        writer.write(bytes(LARGE))
        upload = writer._upload
        upload._pool.shutdown(wait=True)
        proxy.reply(says("499 Client Closed Request", "", ""), times=1)
        writer.cancel()
        assert proxy.faults == 1
        assert events == []


class TestSignedUrls:
    def test_account_signs(self, account) -> None:
        """With a service account URLs are signed on this machine, for one method each."""
        backend = open_backend("gs://bucket/prefix", token=account)
        urls = {method: backend.signed_url("index.json", method=method, expires=60) for method in ("GET", "HEAD")}
        parts = urlsplit(urls["GET"])
        query = parse_qs(parts.query)
        assert parts.geturl().startswith("https://storage.googleapis.com/bucket/prefix/index.json?")
        assert query["X-Goog-Expires"] == ["60"]
        assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
        assert parse_qs(urlsplit(urls["HEAD"]).query)["X-Goog-Signature"] != query["X-Goog-Signature"]
        typed = backend.signed_url("index.json", content_type="application/json")
        assert parse_qs(urlsplit(typed).query)["response-content-type"] == ["application/json"]
        assert account["private_key"] not in repr(backend) + repr(backend.ref) + repr(backend._store._place)

    def test_others_serve_it_themselves(self, backend: ObjectStoreBackend) -> None:
        """Without a key there is no URL, and that is no error."""
        assert backend.signed_url("index.json") is None

    def test_url_works(self, emulator, account) -> None:
        """A client that knows nothing else gets the object; the emulator does not check the signature."""
        backend = open_backend(f"gs://{emulator.new_bucket()}", **emulator.options)
        backend.replace("index.json", b"content")
        signer = open_backend(backend.ref.url, **{**emulator.options, "token": account})
        with urllib.request.urlopen(signer.signed_url("index.json")) as answer:
            assert answer.read() == b"content"


class TestErrors:
    @pytest.mark.parametrize(
        "call",
        [
            lambda backend: backend.get("index.json"),
            lambda backend: backend.stat("index.json"),
            lambda backend: backend.create("cache/layers/k", b"x"),
            lambda backend: backend.replace("index.json", b"x"),
            lambda backend: list(backend.list("")),
            lambda backend: list(backend.stream("index.json")),
            lambda backend: put(backend, bytes(LARGE)),
        ],
    )
    def test_missing_bucket(self, emulator, call: Callable[[ObjectStoreBackend], object]) -> None:
        """Whatever is asked of a bucket that is not there says so, and names the URL."""
        error = failure(lambda: call(open_backend("gs://no-such-bucket/x", **emulator.options)))
        assert "there is no bucket no-such-bucket" in error.message
        assert "gs://no-such-bucket/x" in error.message
        assert not isinstance(error, ObjectNotFound)
        assert "create the bucket" in error.hint

    @pytest.mark.parametrize(
        ("reply", "kind", "hint"),
        [
            (says("401 Unauthorized", "authError", "Invalid Credentials"), StorageError, "credentials"),
            (says("403 Forbidden", "forbidden", f"{SECRET} has no access"), StorageError, "roles/storage.objectUser"),
            (says("403 Forbidden", "quotaExceeded", "too much"), StorageFull, "quota"),
            (says("404 Not Found", "notFound", "The specified bucket does not exist."), StorageError, "create the"),
            (says("400 Bad Request", "invalid", "no"), StorageError, ""),
        ],
    )
    def test_refusals_are_explained(self, emulator, reply: bytes, kind: type[StorageError], hint: str) -> None:
        """What GCS refuses is told once, with what to do, and not tried again."""
        events: list[BuildEvent] = []
        token = {"type": "x", "refresh_token": SECRET}
        with FaultyProxy(emulator.port) as proxy:
            backend = with_events(
                open_backend(f"gs://{emulator.new_bucket()}", **emulator.at(proxy.port)), events.append
            )
            place = _store.attrs.evolve(backend._store._place, options={"token": token})
            backend._store._place = place
            proxy.reply(reply, times=100)
            error = failure(lambda: backend.replace("index.json", b"x"))
        assert type(error) is kind
        assert hint in error.hint
        assert events == []

    @pytest.mark.parametrize(
        "reply",
        [
            says("429 Too Many Requests", "rateLimitExceeded", "slow down"),
            says("403 Forbidden", "userRateLimitExceeded", "slow down"),
            says("503 Service Unavailable", "backendError", "Backend Error"),
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<html>no</html>",
        ],
    )
    def test_busy_service_is_asked_again(self, proxied, reply: bytes) -> None:
        """Throttling and failures of the service are waited for, and each wait is an event."""
        backend, proxy, events = proxied
        proxy.reply(reply, times=2)
        backend.replace("index.json", b"x")
        assert backend.get("index.json") == b"x"
        told = [event for event in events if isinstance(event, StorageRetried)]
        assert [(event.operation, event.key, event.attempt) for event in told] == [
            ("put", "index.json", 1),
            ("put", "index.json", 2),
        ]

    def test_nobody_listens(self) -> None:
        """A wrong endpoint is told at once, not after many tries."""
        backend = open_backend("gs://bucket", token="anon", endpoint_url=f"http://{LOOPBACK}:{free_port()}")
        begin = time.monotonic()
        assert "endpoint_url" in failure(lambda: backend.get("index.json")).hint
        assert time.monotonic() - begin < 5

    def test_credentials_that_are_none(self) -> None:
        """A file of credentials that is not there is named at once."""
        with pytest.raises(InvalidConfig, match=r"there is no file /nonexistent\.json"):
            open_backend("gs://bucket", token="/nonexistent.json")

    @pytest.mark.parametrize(
        "url", ["gs://", "gs:///x", f"gs://me:{SECRET}@bucket/x", "gs://Bucket/x", "gs://bucket/a//b", "gs://b1/../x"]
    )
    def test_malformed_urls(self, url: str) -> None:
        """A URL that is not gs://bucket/prefix is refused before anything is sent."""
        with pytest.raises(InvalidConfig) as raised:
            open_any(url)
        assert SECRET not in raised.value.diagnostics()

    @pytest.mark.parametrize(
        ("options", "said"),
        [({"tokens": "x"}, "did you mean token"), ({"retries": "1"}, "number"), ({"retries": 0}, "at least once")],
    )
    def test_wrong_options(self, options: dict[str, object], said: str) -> None:
        """An option that would be ignored is refused."""
        with pytest.raises(InvalidConfig) as raised:
            open_backend("gs://bucket", **options)
        assert said in raised.value.diagnostics()

    @pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a\0b", "a/../b"])
    def test_keys_that_lead_out(self, key: str) -> None:
        """No key leaves the prefix, and nothing is sent for one that tries."""
        backend = open_backend("gs://bucket/prefix", token="anon", endpoint_url="http://127.0.0.1:9")
        for call in (backend.get, backend.stat, backend.delete, backend.signed_url):
            with pytest.raises(InvalidKey):
                call(key)


def in_child(backend: ObjectStoreBackend, answers: multiprocessing.SimpleQueue) -> None:
    try:
        answers.put((backend.create("cache/layers/child", b"x"), backend.get("cache/layers/parent")))
    except StorageError as error:
        answers.put(error)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_backend_works_after_fork(backend: ObjectStoreBackend) -> None:
    """A child process makes connections of its own, and the parent's go on working."""
    backend.create("cache/layers/parent", b"here")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=in_child, args=(backend, answers))
    child.start()
    child.join(60)
    assert not answers.empty()
    assert answers.get() == (True, b"here")
    assert backend.get("cache/layers/child") == b"x"

"""Every way to fail is told with what to do, without a secret; what may go away is tried again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator

import pytest
from botocore.exceptions import ClientError
from nixery_backend_s3 import S3Backend, _errors, open_backend

from nixery_core import open_backend as open_any
from nixery_core.errors import InvalidConfig, InvalidKey, ObjectNotFound, StorageError, StorageFull
from nixery_core.events import BuildEvent, StorageRetried
from nixery_core.storage.capabilities import with_events
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.servers import LOOPBACK, free_port

SECRET = "hunter2-hunter2"


def xml(status: str, code: str, message: str = "") -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


CALLS: dict[str, Callable[[S3Backend], object]] = {
    "get": lambda backend: backend.get("index.json"),
    "create": lambda backend: backend.create("cache/layers/k", b"x"),
    "replace": lambda backend: backend.replace("index.json", b"x"),
    "list": lambda backend: list(backend.list("")),
    "stat": lambda backend: backend.stat("index.json"),
    "stream": lambda backend: list(backend.stream("index.json")),
    "delete": lambda backend: backend.delete("index.json"),
    "list_uploads": lambda backend: list(backend.list_uploads()),
}


def failure(call: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as raised:
        call()
    assert SECRET not in raised.value.diagnostics() + repr(raised.value)
    assert type(pickle.loads(pickle.dumps(raised.value))) is type(raised.value)
    return raised.value


class TestBadInput:
    @pytest.mark.parametrize("name", CALLS)
    def test_missing_bucket(self, server, name: str) -> None:
        """Whatever is asked of a bucket that is not there says so, and names the URL."""
        if (server.name, name) in (("rclone", "delete"), ("rclone", "list_uploads")):
            pytest.skip("rclone calls this success")
        error = failure(lambda: CALLS[name](open_backend("s3://no-such-bucket/x", **server.options)))
        assert "there is no bucket no-such-bucket" in error.message
        assert "s3://no-such-bucket/x" in error.message
        assert not isinstance(error, ObjectNotFound)
        assert "create the bucket" in error.hint

    @pytest.mark.parametrize("name", CALLS)
    def test_wrong_credentials(self, rclone, name: str) -> None:
        """A wrong secret is named as the cause; the secret is not shown."""
        backend = open_backend(f"s3://{rclone.new_bucket()}", **{**rclone.options, "secret": SECRET})
        assert "credentials" in failure(lambda: CALLS[name](backend)).hint

    def test_no_credentials(self, moto, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there are none at all, the hint says how to give them."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        options = {name: value for name, value in moto.options.items() if name not in ("key", "secret")}
        assert "AWS_PROFILE" in failure(lambda: open_backend("s3://bucket", **options).get("index.json")).hint

    def test_nobody_listens(self) -> None:
        """A wrong endpoint is told at once, not after many tries."""
        options = {"key": "k", "secret": SECRET, "endpoint_url": f"http://{LOOPBACK}:{free_port()}"}
        begin = time.monotonic()
        error = failure(lambda: open_backend("s3://bucket", **options).get("index.json"))
        assert "endpoint_url" in error.hint
        assert time.monotonic() - begin < 5

    @pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a\0b", "a/../b"])
    def test_keys_that_lead_out(self, key: str) -> None:
        """No key leaves the prefix, and nothing is sent for one that tries."""
        backend = open_backend("s3://bucket/prefix", key="k", secret="s", endpoint_url="http://127.0.0.1:9")
        for call in (backend.get, backend.stat, backend.delete, backend.signed_url):
            with pytest.raises(InvalidKey):
                call(key)

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("s3://b_/../x", "prefix"),
            ("s3://bucket/a//b", "prefix"),
            ("s3://bucket/../x", "prefix"),
            ("s3://bad bucket/x", "names no bucket"),
            (f"s3://key:{SECRET}@bucket/x", "credentials and servers have no place"),
            ("s3://127.0.0.1:9000/bucket", "credentials and servers have no place"),
        ],
    )
    def test_malformed_urls(self, url: str, said: str) -> None:
        """A URL that is not s3://bucket/prefix is refused before anything is sent."""
        with pytest.raises(InvalidConfig, match=said) as raised:
            open_any(url)
        assert SECRET not in raised.value.diagnostics()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"endpoint": "x"}, "endpoint_url"),
            ({"region_name": "x"}, "option region_name"),
            ({"retries": "many"}, "retries is a number"),
            ({"retries": True}, "retries is a number"),
            ({"retries": 0}, "at least once"),
            ({"large_blobs": "memory"}, "'auto' or 'stage' or 'spool'"),
            ({"key": "a", "username": "b"}, "not both"),
        ],
    )
    def test_wrong_options(self, options: dict[str, object], said: str) -> None:
        """An option that would be ignored is refused."""
        with pytest.raises(InvalidConfig) as raised:
            open_backend("s3://bucket", **options)
        assert said in raised.value.diagnostics()

    def test_url_at_the_root_and_under_a_prefix(self, moto) -> None:
        """A trailing slash means the same storage, and a prefix is a storage of its own."""
        bucket = moto.new_bucket()
        open_backend(f"s3://{bucket}/a/b", **moto.options).create("index.json", b"x")
        assert open_backend(f"s3a://{bucket}/a/b/", **moto.options).get("index.json") == b"x"
        assert [info.key for info in open_backend(f"s3://{bucket}", **moto.options).list("")] == ["a/b/index.json"]


class TestAnswers:
    @pytest.fixture
    def proxied(self, moto) -> Iterator[tuple[S3Backend, FaultyProxy, list[BuildEvent]]]:
        """A storage behind a proxy, the proxy, and the events of the storage."""
        events: list[BuildEvent] = []
        with FaultyProxy(moto.port) as proxy:
            backend = open_backend(f"s3://{moto.new_bucket()}", **{**moto.at(proxy.port), "secret": SECRET})
            yield with_events(backend, events.append), proxy, events

    @pytest.mark.parametrize(
        ("status", "code", "kind", "hint"),
        [
            ("403 Forbidden", "SignatureDoesNotMatch", StorageError, "credentials"),
            ("403 Forbidden", "InvalidAccessKeyId", StorageError, "credentials"),
            ("400 Bad Request", "ExpiredToken", StorageError, "credentials"),
            ("403 Forbidden", "AccessDenied", StorageError, "s3:PutObject"),
            ("403 Forbidden", "RequestTimeTooSkewed", StorageError, "clock"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", StorageError, "region"),
            ("507 Insufficient Storage", "XMinioStorageFull", StorageFull, "free some space"),
            ("400 Bad Request", "QuotaExceeded", StorageFull, "quota"),
        ],
    )
    def test_refusals_are_explained(self, proxied, status: str, code: str, kind: type[StorageError], hint: str) -> None:
        """What S3 refuses is told once, with what to do, and not tried again."""
        backend, proxy, events = proxied
        proxy.reply(xml(status, code, f"said the server of {SECRET}"), times=100)
        error = failure(lambda: backend.replace("index.json", b"x"))
        assert type(error) is kind
        assert code in error.message
        assert hint in error.hint
        assert error.key == "index.json"
        assert events == []

    @pytest.mark.parametrize(
        "reply",
        [
            xml("503 Slow Down", "SlowDown", "reduce your request rate"),
            xml("500 Internal Server Error", "InternalError"),
            xml("429 Too Many Requests", "TooManyRequests"),
            xml("400 Bad Request", "RequestTimeout"),
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<html>no</html>",
        ],
    )
    def test_busy_server_is_asked_again(self, proxied, reply: bytes) -> None:
        """Throttling and failures of the server are waited for, and each wait is an event."""
        backend, proxy, events = proxied
        proxy.reply(reply, times=2)
        backend.replace("index.json", b"x")
        assert backend.get("index.json") == b"x"
        assert proxy.faults == 2
        told = [event for event in events if isinstance(event, StorageRetried)]
        assert [(event.operation, event.key, event.attempt) for event in told] == [
            ("put", "index.json", 1),
            ("put", "index.json", 2),
        ]
        assert 0.4 <= told[0].delay <= 0.8 <= told[1].delay <= 1.6
        assert all(event.reason for event in told)

    def test_retries_end(self, moto) -> None:
        """After the last try the error is told, with the words of the server."""
        with FaultyProxy(moto.port) as proxy:
            backend = open_backend(f"s3://{moto.new_bucket()}", **moto.at(proxy.port), retries=2)
            proxy.reply(xml("503 Slow Down", "SlowDown"), times=100)
            error = failure(lambda: backend.get("index.json"))
        assert proxy.faults == 2
        assert "SlowDown" in error.message
        assert "again later" in error.hint

    def test_the_silent_backend_stays_silent(self, proxied) -> None:
        """Only the backend that was asked to tell does so."""
        backend, proxy, events = proxied
        proxy.reply(xml("503 Slow Down", "SlowDown"), times=1)
        open_backend(backend.ref.url, **backend.ref.options).replace("index.json", b"x")
        assert events == []

    def test_every_code_has_a_home(self) -> None:
        """An error of S3 that nobody has heard of is still an error of ours that shows its words."""
        error = ClientError({"Error": {"Code": "Novelty", "Message": "unheard of"}}, "PutObject")
        ours = _errors.mapped(error, key="k", url="s3://b", bucket="b", secrets=["unheard"])
        assert type(ours) is StorageError
        assert ours.message == "k in s3://b: Novelty: *** of"


def in_child(backend: S3Backend, answers: multiprocessing.SimpleQueue) -> None:
    try:
        answers.put((backend.create("cache/layers/child", b"x"), backend.get("cache/layers/parent")))
    except StorageError as error:
        answers.put(error)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_backend_works_after_fork(moto) -> None:
    """A child process makes connections of its own, and the parent's go on working."""
    backend = open_backend(f"s3://{moto.new_bucket()}", **moto.options)
    backend.create("cache/layers/parent", b"here")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=in_child, args=(backend, answers))
    child.start()
    child.join(60)
    assert not answers.empty()
    assert answers.get() == (True, b"here")
    assert backend.get("cache/layers/child") == b"x"

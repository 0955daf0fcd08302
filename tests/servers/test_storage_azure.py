"""Storage in Azure Blob Storage through adlfs, with Azurite, the emulator of Microsoft."""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from adlfs import AzureBlobFileSystem
from azure.storage.blob._shared.policies_async import ExponentialRetry

from nixery_core.errors import InvalidConfig, InvalidKey, ObjectNotFound, StorageError
from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.server import registry_app
from nixery_core.storage import fsspec_backend
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.fsspec_backend import SPOOL, FsspecBackend
from nixery_core.storage.image_index import write_index
from nixery_core.storage.keys import BLOBS, STAGING, blob_key
from nixery_core.storage.layout import delete_ref
from nixery_core.storage.plugins import open_backend
from nixery_core.testing import BackendTests
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.memory_images import memory_builder
from nixery_core.testing.servers import LOOPBACK, free_port, serving

# aiohttp warns of each body of more than 1 MiB that it is given in one piece, as the client of Azure does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

ACCOUNT = "nixerytests"
KEY = base64.b64encode(b"the key of an account that exists in this test only").decode()
INSTALLED = Path(__file__).parents[2] / ".nox" / "azurite" / "node_modules" / ".bin"
"""Where the session ``backends`` of nox puts it."""


def connection_string(port: int, key: str = KEY, account: str = ACCOUNT) -> str:
    return (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
        f"BlobEndpoint=http://{LOOPBACK}:{port}/{account};"
    )


@attrs.frozen(kw_only=True)
class Server:
    """An Azurite that runs."""

    port: int

    @property
    def options(self) -> dict[str, Any]:
        """What open_backend takes."""
        return self.at(self.port)

    def at(self, port: int) -> dict[str, Any]:
        """Return the options to reach the server through another port, such as that of a proxy."""
        return {"connection_string": connection_string(port)}

    def new_container(self) -> str:
        """Return the name of a new container."""
        name = f"images-{uuid.uuid4()}"
        AzureBlobFileSystem(**self.options).mkdir(name)
        return name


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Azurite with an account of our own, over an empty folder."""
    found = (
        os.environ.get("NIXERY_AZURITE") or shutil.which("azurite-blob") or shutil.which("azurite-blob", path=INSTALLED)
    )
    if found is None or shutil.which("node") is None:
        reason = "not installed: azurite-blob; nox -s backends installs it with npm, NIXERY_AZURITE names another one"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    port = free_port()
    folder = tmp_path_factory.mktemp("azurite")
    # clients of Azure are newer than any Azurite; it would tell Microsoft of each run
    quiet = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    command = [found, "--blobHost", LOOPBACK, "--blobPort", str(port), "--location", folder, *quiet]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with serving(command, port, log=folder / "log", environment=environment):
        yield Server(port=port)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of Azure waits 15 s and more before it sends a request again; adlfs has no option for that."""
    monkeypatch.setattr(ExponentialRetry, "get_backoff_time", lambda self, settings: 0.01)


class TestAzure(BackendTests):
    large = SPOOL + 12345
    examples = 4

    @pytest.fixture
    def backend(self, azurite: Server) -> Backend:
        """Return an empty storage in a folder of a new container."""
        return open_backend(f"az://{azurite.new_container()}/some/where", **azurite.options)

    @pytest.fixture
    def proxied(self, azurite: Server) -> Iterator[tuple[Backend, FaultyProxy]]:
        """Return an empty storage, a whole container, behind a proxy."""
        with FaultyProxy(azurite.port) as proxy:
            yield open_backend(f"az://{azurite.new_container()}", **azurite.at(proxy.port)), proxy


@pytest.fixture
def backend(azurite: Server) -> FsspecBackend:
    """An empty storage."""
    found = open_backend(f"az://{azurite.new_container()}/images", **azurite.options)
    assert isinstance(found, FsspecBackend)
    return found


@pytest.fixture
def proxied(azurite: Server) -> Iterator[tuple[Backend, FaultyProxy]]:
    """An empty storage behind a proxy."""
    with FaultyProxy(azurite.port) as proxy:
        yield open_backend(f"az://{azurite.new_container()}/images", **azurite.at(proxy.port)), proxy


def test_nothing_is_connected_before_it_is_used() -> None:
    """To open a storage needs no server."""
    open_backend("az://images/here", connection_string=connection_string(free_port()))


def test_all_names_of_one_place(azurite: Server) -> None:
    """az, abfs and abfss, with the account in the URL or without, are one storage."""
    container = azurite.new_container()
    urls = [f"{scheme}://{container}/images" for scheme in ("az", "abfs", "abfss")]
    urls.append(f"abfs://{container}@{ACCOUNT}.dfs.core.windows.net/images/")
    open_backend(urls[0], **azurite.options).create("index.json", b"{}")
    for url in urls:
        found = open_backend(url, **azurite.options)
        assert found.get("index.json") == b"{}"
        assert [info.key for info in found.list("")] == ["index.json"]


class TestLargeBlobs:
    DATA = bytes(range(256)) * (1 + SPOOL // 256)

    def write(self, backend: Backend) -> None:
        writer = backend.open_blob()
        writer.write(self.DATA)
        writer.commit(Digest.of(self.DATA))

    def test_they_go_to_their_place_at_once(self, backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Azure copies in the background, so nothing is copied; a blob of another size is mended on the way."""

        async def fail(*_: object, **__: object) -> None:
            pytest.fail("it was copied")

        monkeypatch.setattr(AzureBlobFileSystem, "_cp_file", fail)
        backend.replace(blob_key(Digest.of(self.DATA)), b"cut off")
        self.write(backend)
        assert b"".join(backend.stream(blob_key(Digest.of(self.DATA)))) == self.DATA

    def test_the_second_of_two_writers(self, backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is done first makes Azure drop the blocks of the other, for whom the blob is there then."""
        upload = fsspec_backend.upload

        def interrupted(fs: Any, path: str, pieces: Iterable[bytes], *sizes: int) -> None:
            monkeypatch.undo()

            def between() -> Iterator[bytes]:
                for number, piece in enumerate(pieces):
                    if number == 1:
                        self.write(open_backend(backend.ref.url, **backend.ref.options))
                    yield piece

            with pytest.raises(Exception, match="InvalidBlockList"):
                upload(fs, path, between(), *sizes)
            raise ConnectionError("as the first has told")

        monkeypatch.setattr(fsspec_backend, "upload", interrupted)
        self.write(backend)
        assert b"".join(backend.stream(blob_key(Digest.of(self.DATA)))) == self.DATA

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
    def test_upload_that_breaks_off(
        self, backend: FsspecBackend, error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was sent before a failure is not seen anywhere, and does no harm to the next writer."""
        upload = fsspec_backend.upload

        def breaking(fs: Any, path: str, pieces: Iterable[bytes], *sizes: int) -> None:
            def some() -> Iterator[bytes]:
                yield next(iter(pieces))
                raise error

            upload(fs, path, some(), *sizes)

        monkeypatch.setattr(fsspec_backend, "upload", breaking)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            self.write(backend)
        monkeypatch.undo()
        assert list(backend.list("")) == []
        self.write(backend)
        assert b"".join(backend.stream(blob_key(Digest.of(self.DATA)))) == self.DATA


class TestConnections:
    def test_create_whose_answer_is_lost(self, proxied: tuple[Backend, FaultyProxy]) -> None:
        """Who created an object is told so, although the answer was lost, and the next one said that it is there."""
        backend, proxy = proxied
        assert backend.create("cache/layers/other", b"theirs")
        proxy.cut_off_after(1, times=1)
        assert backend.create("cache/layers/k", b"ours") is True
        proxy.cut_off_after(1, times=1)
        assert backend.create("cache/layers/other", b"ours") is False
        assert proxy.faults == 2
        assert backend.get("cache/layers/other") == b"theirs"

    def test_busy_server(self, proxied: tuple[Backend, FaultyProxy]) -> None:
        """A request is sent again while the server is busy, but not for ever; then the error says so."""
        backend, proxy = proxied
        busy = (
            b"HTTP/1.1 503 Server Busy\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        proxy.reply(busy, times=2)
        assert backend.create("cache/layers/k", b"x")
        assert proxy.faults == 2
        proxy.reply(busy, times=1000)
        with pytest.raises(StorageError, match="ServerBusy") as raised:
            backend.replace("cache/layers/k", b"y")
        assert "later" in raised.value.hint


class TestSignedUrls:
    def test_a_url_needs_no_credentials(self, backend: FsspecBackend) -> None:
        """Whoever has the URL reads the object, whole or a range of it."""
        backend.create("cache/layers/k", b"0123456789")
        url = backend.signed_url("cache/layers/k", expires=60)
        assert url is not None
        assert KEY not in url
        assert urllib.request.urlopen(url, timeout=10).read() == b"0123456789"
        request = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert (answer.status, answer.read()) == (206, b"234")

    def test_what_cannot_be_signed(self, azurite: Server, backend: FsspecBackend) -> None:
        """Without the key of the account there is no URL, and none that is over before it begins."""
        shared = f"BlobEndpoint=http://{LOOPBACK}:{azurite.port}/{ACCOUNT};SharedAccessSignature=sv=2020-01-01&sig=x"
        other = open_backend("az://images", connection_string=shared)
        assert isinstance(other, FsspecBackend)
        assert other.signed_url("index.json") is None
        assert backend.signed_url("index.json", method="HEAD") is None
        with pytest.raises(InvalidConfig):
            backend.signed_url("index.json", expires=0)


def calls(backend: Backend, key: str = "index.json") -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: backend.get(key),
        "stat": lambda: backend.stat(key),
        "stream": lambda: next(backend.stream(key)),
        "create": lambda: backend.create(key, b"{}"),
        "replace": lambda: backend.replace(key, b"{}"),
        "delete": lambda: backend.delete(key),
    }


def failures(backend: Backend) -> Iterator[StorageError]:
    """Give the error of each call, which has to be ours, a line long, and without secrets."""
    everything = calls(backend) | {
        "list": lambda: list(backend.list("")),
        "list below": lambda: list(backend.list("cache/")),
        "small blob": lambda: put_blob(backend, b"x", media_type="text/plain"),
        "large blob": lambda: put_blob(backend, bytes(SPOOL + 1), media_type="text/plain"),
    }
    for name, call in everything.items():
        with pytest.raises(StorageError) as raised:
            call()
        error = pickle.loads(pickle.dumps(raised.value))
        assert error.message == raised.value.message, name
        assert "\n" not in error.message, name
        assert "az://" in error.message, name
        assert KEY not in error.diagnostics() + repr(error) + repr(backend), name
        yield error


class TestBadInput:
    def test_missing_container(self, azurite: Server) -> None:
        """A container that is not there is not taken for an empty one; nobody makes it."""
        name = f"images-{uuid.uuid4()}"
        for error in failures(open_backend(f"az://{name}/here", **azurite.options)):
            assert not isinstance(error, ObjectNotFound)
            assert "container" in error.message
            assert "create the container" in error.hint
        assert not AzureBlobFileSystem(**azurite.options).exists(name)

    def test_wrong_key(self, azurite: Server) -> None:
        """A wrong key says what to check, and is not shown."""
        wrong = base64.b64encode(b"the key of another account").decode()
        backend = open_backend("az://images", connection_string=connection_string(azurite.port, key=wrong))
        for error in failures(backend):
            assert not isinstance(error, ObjectNotFound)
            assert "account_key" in error.hint
            assert wrong not in error.diagnostics() + repr(error)

    def test_unknown_account(self, azurite: Server) -> None:
        """An account that the server does not know is an error, not an empty storage."""
        string = connection_string(azurite.port, account="somebodyelse")
        for error in failures(open_backend("az://images", connection_string=string)):
            assert not isinstance(error, ObjectNotFound)
            assert error.hint

    def test_nobody_listens(self) -> None:
        """A server that is not there is an error that says where to look."""
        for error in failures(open_backend("az://images", connection_string=connection_string(free_port()))):
            assert not isinstance(error, ObjectNotFound)
            assert "whether its server runs" in error.hint

    @pytest.mark.parametrize("environment", [False, True])
    def test_key_that_the_server_repeats_is_masked(
        self, proxied: tuple[Backend, FaultyProxy], environment: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A message of the server or the client that holds a secret is shown without it, wherever it is from."""
        backend, proxy = proxied
        if environment:
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(proxy.port))
            # fsspec keeps file systems by their options, and knows nothing of the environment
            backend = open_backend(backend.ref.url, skip_instance_cache=True)
        reason = f"HTTP/1.1 403 No {KEY} here\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        proxy.reply(reason.encode(), times=1000)
        for error in failures(backend):
            assert "No *** here" in error.message

    @pytest.mark.parametrize("string", ["nonsense", "AccountKey=c2VjcmV0", "AccountName=a;AccountKey=c2VjcmV0;x"])
    def test_malformed_connection_string(self, string: str) -> None:
        """Options that do not say where to go are an error when the storage is opened."""
        with pytest.raises(StorageError) as raised:
            open_backend("az://images", connection_string=string)
        assert "connection_string" in raised.value.hint
        assert "c2VjcmV0" not in raised.value.diagnostics()

    def test_no_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without any option the error says which there are."""
        for name in [name for name in os.environ if name.startswith("AZURE_")]:
            monkeypatch.delenv(name)
        with pytest.raises(StorageError) as raised:
            open_backend("az://images")
        assert "account_name" in raised.value.hint

    @pytest.mark.parametrize("url", ["az://", "abfs:///", "az:///images"])
    def test_no_container(self, azurite: Server, url: str) -> None:
        """A URL without a container is refused before anything is tried."""
        with pytest.raises((InvalidConfig, StorageError)) as raised:
            list(open_backend(url, **azurite.options).list(""))
        assert raised.value.hint

    def test_keys_that_adlfs_reads_otherwise(self, azurite: Server, backend: FsspecBackend) -> None:
        """A key that adlfs would write elsewhere, or fail on when it is written, is refused at once."""
        top = open_backend(f"az://{azurite.new_container()}", **azurite.options)
        for key in ("sha256:abcd", "sha256:abcd/x", "refs/a?versionid=1"):
            for call in calls(top, key).values():
                with pytest.raises(InvalidKey) as raised:
                    call()
                assert raised.value.key == key
                assert raised.value.hint
        assert list(top.list("")) == []

    @pytest.mark.parametrize("key", ["sha256:abcd", "refs/a b+ü%2F/_tags/1:2", "refs/#?&/[x]@y;*", "refs/a%20b=c"])
    def test_all_letters_are_letters(self, backend: FsspecBackend, key: str) -> None:
        """No letter of a key means anything to Azure or its client."""
        assert backend.create(key, b"content")
        assert backend.get(key) == b"".join(backend.stream(key)) == b"content"
        assert [info.key for info in backend.list("")] == [key]
        backend.replace(key, b"other")
        url = backend.signed_url(key)
        assert url is not None
        assert urllib.request.urlopen(url, timeout=10).read() == b"other"
        backend.delete(key)
        assert backend.stat(key) is None


def test_image_is_built_pulled_and_kept(backend: FsspecBackend) -> None:
    """An image in Azure is whole: built once, found again, pulled by way of signed URLs, checked, and collected."""
    builder = memory_builder(backend, "git", "htop")
    image = builder.build(ImageSpec.parse("git/htop"))
    assert (
        memory_builder(open_backend(backend.ref.url, **backend.ref.options), "git", "htop")
        .build(ImageSpec.parse("git/htop"))
        .descriptor
        == image.descriptor
    )
    with AsgiClient(registry_app(builder)) as client:
        manifest = client.get("/v2/git/htop/manifests/latest")
        assert manifest.headers["docker-content-digest"] == str(image.descriptor.digest)
        for layer in manifest.json()["layers"]:
            answer = client.get(f"/v2/git/htop/blobs/{layer['digest']}")
            assert answer.status == 307
            body = urllib.request.urlopen(answer.headers["location"], timeout=10).read()
            assert str(Digest.of(body)) == layer["digest"]
    with AsgiClient(registry_app(builder, redirect_expires=0)) as client:
        for layer in manifest.json()["layers"]:
            answer = client.get(f"/v2/git/htop/blobs/{layer['digest']}")
            assert (answer.status, str(Digest.of(answer.body))) == (200, layer["digest"])
    write_index(backend)
    report = fsck(backend, repair=True, grace=0)
    assert report.problems == ()
    assert report.blobs >= 4
    assert collect_garbage(backend, grace=0).removed_blobs == 0
    put_blob(backend, b"nobody needs it", media_type="text/plain")
    delete_ref(backend, "git/htop", "latest")
    assert collect_garbage(backend, grace=0, keep=0).removed_blobs == report.blobs + 1
    assert list(backend.list(BLOBS)) == list(backend.list(STAGING)) == []


FORKS = """
import os, pickle, sys
from nixery_core.storage.plugins import open_backend
ref = pickle.load(sys.stdin.buffer)
backend = open_backend(ref.url, **ref.options)
assert backend.create("cache/layers/parent", b"here")
child = os.fork()
if child == 0:
    assert backend.get("cache/layers/parent") == b"here"
    assert backend.create("cache/layers/child", b"there")
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert backend.get("cache/layers/child") == b"there"
"""


def test_backend_works_after_fork(backend: FsspecBackend) -> None:
    """A child process makes connections of its own, and both processes end as they should, in silence."""
    found = subprocess.run(
        [sys.executable, "-c", FORKS], input=pickle.dumps(backend.ref), capture_output=True, check=False, timeout=60
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")

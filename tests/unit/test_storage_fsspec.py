"""What is special about fsspec: foreign errors, uploads that fail, files that publish when they are closed."""

import io
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from nixery_core.errors import ObjectNotFound, StorageError, StorageFull
from nixery_core.model.digest import Digest
from nixery_core.storage._fsspec_errors import mapped, secrets_of
from nixery_core.storage._fsspec_traits import BLOCK, Traits, traits_of
from nixery_core.storage.fsspec_backend import SPOOL, FsspecBackend
from nixery_core.storage.keys import blob_key


class LibraryError(Exception):
    """What botocore and others raise: nothing that Python knows."""


@pytest.fixture
def memory() -> FsspecBackend:
    """An empty storage in memory."""
    return FsspecBackend(f"memory://{uuid.uuid4()}")


@pytest.fixture
def files(tmp_path: Path) -> FsspecBackend:
    """An empty storage in a file system without conditional writes."""
    return FsspecBackend(f"file://{tmp_path}/storage")


@pytest.mark.parametrize(
    ("error", "ours", "text"),
    [
        (LibraryError("SlowDown"), StorageError, "LibraryError: SlowDown"),
        (ValueError("no bucket"), StorageError, "no bucket"),
        (PermissionError(13, "Access Denied"), StorageError, "Access Denied"),
        (OSError(28, "No space left"), StorageFull, "No space left"),
        (OSError("plain"), StorageError, "plain"),
        (TimeoutError(), StorageError, "TimeoutError"),
        (NotImplementedError(), StorageError, "NotImplementedError"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Exception) else None,
)
def test_no_foreign_error_leaks(
    memory: FsspecBackend, error: Exception, ours: type[StorageError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a storage library raises becomes an error of ours with the key, the place and the cause."""
    memory.create("cache/layers/k", b"x" * 10)

    def fail(*args: Any, **options: Any) -> Any:
        raise error

    stream = memory.stream("cache/layers/k")
    for name in ("pipe_file", "cat_file", "info", "find", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    writer = memory.open_blob()
    writer.write(b"data")
    calls = {
        "create": lambda: memory.create("cache/layers/k", b"x"),
        "replace": lambda: memory.replace("cache/layers/k", b"x"),
        "get": lambda: memory.get("cache/layers/k"),
        "stat": lambda: memory.stat("cache/layers/k"),
        "delete": lambda: memory.delete("cache/layers/k"),
        "list": lambda: list(memory.list("cache/")),
        "stream": lambda: list(stream),
        "commit": lambda: writer.commit(Digest.of(b"data")),
    }
    for call in calls.values():
        with pytest.raises(ours) as raised:
            call()
        assert type(raised.value) is ours
        assert raised.value.__cause__ is error
        assert raised.value.key
        assert text in raised.value.message
        assert memory.ref.url in raised.value.message


class AnsweredError(Exception):
    """What the clients of web services raise: it tells the HTTP status, and appends the answer."""

    def __init__(self, status: int) -> None:
        super().__init__("refused\nRequestId: 1\n<xml>")
        self.status_code = status
        self.error_code = "Code"


BUCKETS = Traits(container=True, credentials="check the key")


@pytest.mark.parametrize(
    ("status", "traits", "hint"),
    [
        (401, BUCKETS, "check the key"),
        (403, BUCKETS, "check the key"),
        (403, Traits(), "it can be read, but not be written to"),
        (404, BUCKETS, "create the container, or check its name and the account"),
        (404, Traits(), ""),
        (405, BUCKETS, "it can be read, but not be written to"),
        (429, BUCKETS, "the storage is busy: run it again later"),
        (503, Traits(), "the storage is busy: run it again later"),
        (400, BUCKETS, ""),
    ],
)
def test_what_the_server_says_becomes_a_hint(status: int, traits: Traits, hint: str) -> None:
    """The status is found however deep it lies, and says what to do; the message is one line with the code."""
    answer = AnsweredError(status)
    with pytest.raises(StorageError) as raised, mapped("index.json", "az://images", traits, []):
        raise RuntimeError(f"failed to upload: {answer}") from answer
    assert raised.value.hint == hint
    assert raised.value.message == "index.json in az://images: RuntimeError: failed to upload: refused (Code)"


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (AnsweredError(507), StorageFull, "free some space"),
        (ValueError("no such option"), StorageError, "check the key"),
        (type("AuthenticationFailed", (Exception,), {})("x"), StorageError, "check the key"),
        (type("ServerDisconnectedError", (Exception,), {})("x"), StorageError, "check the address"),
    ],
)
def test_what_the_client_says_becomes_a_hint(error: Exception, kind: type[StorageError], hint: str) -> None:
    """Where there was no answer, what the exception is called says what to do."""
    with pytest.raises(StorageError) as raised, mapped("index.json", "az://images", BUCKETS, []):
        raise error
    assert type(raised.value) is kind
    assert raised.value.hint.startswith(hint)


@pytest.mark.parametrize(
    "error", [OSError(5, "bad k3y"), OSError("bad k3y"), ValueError("bad k3y"), LibraryError("k3y")]
)
def test_secrets_of_the_options_are_masked(error: Exception) -> None:
    """No message shows the value of an option that is a secret, nor a part of a connection string that is one."""
    options = {
        "connection_string": "AccountName=images;AccountKey=k3y",
        "client_kwargs": {"password": "hunter2"},
        "key_filename": "/home/me/id",
        "account_name": "images",
        "token": "",
    }
    secrets = secrets_of(options)
    assert secrets == ["AccountName=images;AccountKey=k3y", "hunter2", "k3y"]
    with pytest.raises(StorageError) as raised, mapped("index.json", "az://images", Traits(), secrets):
        raise error
    assert "k3y" not in repr(raised.value) + raised.value.diagnostics()
    assert "***" in raised.value.message


def test_secrets_of_the_url_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names the place without its password."""
    backend = FsspecBackend("memory://me:hunter2@place/x")
    with pytest.raises(ObjectNotFound) as raised:
        backend.get("index.json")
    assert "hunter2" not in str(raised.value) + repr(backend) + repr(backend.ref)


class TestUploads:
    LARGE = SPOOL + 5 * BLOCK + 1

    def write(self, backend: FsspecBackend, size: int) -> None:
        data = bytes(size)
        writer = backend.open_blob()
        try:
            for start in range(0, size, 1 << 20):
                writer.write(data[start : start + (1 << 20)])
            writer.commit(Digest.of(data))
        finally:
            writer.cancel()

    @pytest.mark.parametrize("size", [100, LARGE])
    @pytest.mark.parametrize("call", ["_open", "mv", "makedirs"])
    def test_failed_upload_leaves_nothing(
        self, files: FsspecBackend, size: int, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An upload or a move that fails publishes nothing and is cleaned up."""

        def fail(*args: Any, **options: Any) -> Any:
            raise LibraryError("broken")

        monkeypatch.setattr(LocalFileSystem, call, fail)
        with pytest.raises(StorageError, match="broken"):
            self.write(files, size)
        monkeypatch.undo()
        assert list(files.list("")) == []

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_upload_that_breaks_off(
        self, files: FsspecBackend, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that breaks in the middle of a large blob publishes nothing, and leaves no file anywhere."""
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        opened = LocalFileSystem._open
        handles = []

        def open_broken(self: Any, *args: Any, **options: Any) -> Any:
            handle = opened(self, *args, **options)
            write, written = handle.write, []

            def write_some(data: bytes) -> int:
                written.append(len(data))
                if len(written) == 3:
                    raise error
                return int(write(data))

            handle.write = write_some
            handles.append(handle)
            return handle

        monkeypatch.setattr(LocalFileSystem, "_open", open_broken)
        with pytest.raises((StorageFull, KeyboardInterrupt)):
            self.write(files, self.LARGE)
        assert [handle.closed for handle in handles] == [True]
        assert list(files.list("")) == []
        assert list(temporary.iterdir()) == []

    def test_existing_blob_is_not_sent_again(self, files: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A blob that is there with its size costs one look."""
        self.write(files, self.LARGE)

        def fail(*args: Any, **options: Any) -> Any:
            pytest.fail("it was sent again")

        monkeypatch.setattr(LocalFileSystem, "_open", fail)
        self.write(files, self.LARGE)

    def test_blob_of_another_size_is_replaced(self, memory: FsspecBackend) -> None:
        """A blob that was cut off is mended."""
        memory.replace(blob_key(Digest.of(bytes(100))), b"cut")
        self.write(memory, 100)
        assert memory.get(blob_key(Digest.of(bytes(100)))) == bytes(100)

    def test_transaction_queue_stays_empty(self, files: FsspecBackend) -> None:
        """The transaction of fsspec, which all threads share, never holds our files."""
        self.write(files, self.LARGE)
        with files._filesystems.lent() as fs:
            assert not fs.transaction.files


class TestSpool:
    def test_small_blob_needs_no_disk(self, memory: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """Up to the bound nothing is written to this machine."""
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: pytest.fail("a temporary file"))
        writer = memory.open_blob()
        writer.write(bytes(SPOOL))
        writer.cancel()

    def test_large_blob_leaves_no_name(
        self, memory: FsspecBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The temporary file has no name, so even a killed process leaves none."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        writer = memory.open_blob()
        writer.write(bytes(SPOOL + 1))
        assert list(tmp_path.iterdir()) == []
        assert _open_files_in(tmp_path) == 1
        writer.cancel()
        assert _open_files_in(tmp_path) == 0

    def test_full_temporary_directory(self, memory: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk of this machine is an error that names its directory."""

        class Full(io.BytesIO):
            def write(self, data: Any) -> int:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: Full())
        writer = memory.open_blob()
        with pytest.raises(StorageFull, match=tempfile.gettempdir()):
            writer.write(bytes(SPOOL + 1))
        writer.cancel()


def _open_files_in(directory: Path) -> int:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(fd.readlink()))
        except OSError:
            continue
    return sum(link.startswith(str(directory)) for link in links)


def test_object_that_becomes_shorter_while_it_is_read(memory: FsspecBackend) -> None:
    """A stream never ends early in silence."""
    memory.replace("index.json", bytes(BLOCK + 100))
    stream = memory.stream("index.json")
    assert len(next(stream)) == BLOCK
    memory.replace("index.json", b"short")
    with pytest.raises(StorageError, match="shorter"):
        next(stream)


class OldFileSystem(AbstractFileSystem):
    """A file system of an older fsspec: its pipe_file knows no mode."""

    protocol = "oldmemory"

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        raise NotImplementedError


def test_file_systems_without_conditional_writes_are_known() -> None:
    """Only a file system that says so is trusted to refuse an existing object."""
    assert traits_of(MemoryFileSystem).only_new is not None
    assert traits_of(LocalFileSystem).only_new is None
    assert traits_of(OldFileSystem).only_new is None


@pytest.fixture(autouse=True)
def _memory_is_emptied() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]

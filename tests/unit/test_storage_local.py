"""What is special about a directory: permissions, errors of the system, file systems without links."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nixery_core.errors import StorageError, StorageFull
from nixery_core.model.digest import Digest
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import blob_key
from nixery_core.storage.local import LocalBackend
from nixery_core.testing import backend as conformance

DATA = b"some blob"
KEY = blob_key(Digest.of(DATA))


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    """An empty storage."""
    return LocalBackend(tmp_path / "storage")


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    """A function that sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def put(backend: LocalBackend) -> None:
    writer = backend.open_blob()
    try:
        writer.write(DATA)
        writer.commit(Digest.of(DATA))
    finally:
        writer.cancel()


WRITES: dict[str, Callable[[LocalBackend], object]] = {
    "blob": put,
    "create": lambda backend: backend.create("cache/layers/k", DATA),
    "replace": lambda backend: backend.replace("index.json", DATA),
}


def files(backend: LocalBackend) -> list[Path]:
    return [path for path in backend.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_umask_decides_who_may_read(backend: LocalBackend, umask: Callable[[int], object], mask: int) -> None:
    """Files and directories are as open as any program's, not private as temporary files are."""
    umask(mask)
    for write in WRITES.values():
        write(backend)
    assert len(files(backend)) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(backend)} == {0o666 & ~mask}
    assert stat.S_IMODE((backend.root / "blobs" / "sha256").stat().st_mode) == 0o777 & ~mask


def test_damaged_blob_is_mended(backend: LocalBackend) -> None:
    """A blob that was cut off is replaced when it is built again, also by put_blob."""
    for write in (put, lambda backend: put_blob(backend, DATA, media_type="text/plain")):
        backend.replace(KEY, b"cut")
        write(backend)
        assert backend.get(KEY) == DATA


def test_reader_keeps_what_it_opened(backend: LocalBackend) -> None:
    """Who reads an object goes on reading it while it is replaced or deleted."""
    backend.replace("index.json", b"x" * (3 << 20))
    stream = backend.stream("index.json")
    begin = next(stream)
    backend.replace("index.json", b"short")
    backend.delete("index.json")
    assert begin + b"".join(stream) == b"x" * (3 << 20)


class Refuses:
    """An os function that fails like a file system."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    def __call__(self, *args: object, **options: object) -> int:
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(
    ("number", "error", "hint"),
    [
        (errno.ENOSPC, StorageFull, "free some space"),
        (errno.EDQUOT, StorageFull, "quota"),
        (errno.EIO, StorageError, ""),
        (errno.EROFS, StorageError, "user who may"),
    ],
)
def test_errors_of_the_system(
    backend: LocalBackend,
    write: Callable[[LocalBackend], object],
    call: str,
    number: int,
    error: type[StorageError],
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk, a quota or a broken device is an error of ours that names the key; nothing is left."""
    refuses = Refuses(number)
    monkeypatch.setattr(os, call, refuses)
    with pytest.raises(error) as raised:
        write(backend)
    monkeypatch.undo()
    assert refuses.calls
    assert type(raised.value) is error
    assert raised.value.key
    assert str(backend.root) in raised.value.message
    assert hint in raised.value.hint
    assert files(backend) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_directory_that_may_not_be_written(backend: LocalBackend, write: Callable[[LocalBackend], object]) -> None:
    """Missing permission is an error with a hint."""
    backend.root.mkdir(mode=0o555)
    with pytest.raises(StorageError) as raised:
        write(backend)
    assert "user who may" in raised.value.hint


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_file_in_the_place_of_the_directory(backend: LocalBackend, write: Callable[[LocalBackend], object]) -> None:
    """A storage whose path is a file is an error that names it."""
    backend.root.write_bytes(b"a file")
    with pytest.raises(StorageError, match="storage"):
        write(backend)
    assert backend.root.read_bytes() == b"a file"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
class TestWithoutHardLinks:
    """FAT, some network and user space file systems cannot link."""

    @pytest.fixture(autouse=True)
    def _no_links(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "link", Refuses(number))

    def test_create_only_creates(self, backend: LocalBackend) -> None:
        """The first content stays."""
        assert backend.create("cache/layers/k", b"first") is True
        assert backend.create("cache/layers/k", b"second") is False
        assert backend.get("cache/layers/k") == b"first"
        assert list(backend.list("staging/")) == []

    def test_one_of_many_creates(self, backend: LocalBackend) -> None:
        """Of many threads exactly one creates."""
        conformance.BackendTests().test_one_of_many_creates(backend)


def test_link_that_fails_for_another_reason(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only file systems without links get the other way."""
    monkeypatch.setattr(os, "link", Refuses(errno.EIO))
    with pytest.raises(StorageError):
        backend.create("cache/layers/k", b"x")
    monkeypatch.undo()
    assert files(backend) == []


def test_directory_is_no_object(backend: LocalBackend) -> None:
    """A key that is the folder of others is neither read nor written."""
    backend.create("refs/a/_tags/v", b"x")
    assert backend.stat("refs/a") is None
    for write in (backend.create, backend.replace):
        with pytest.raises(StorageError):
            write("refs/a", b"y")
    backend.delete("refs/a")
    assert [info.key for info in backend.list("")] == ["refs/a/_tags/v"]


def test_writer_of_a_forked_process_is_not_its_own(backend: LocalBackend) -> None:
    """A child process that ends does not remove what its parent is writing."""
    writer = backend.open_blob()
    writer.write(DATA)
    child = os.fork()
    if child == 0:
        writer.cancel()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.commit(Digest.of(DATA))
    assert backend.get(KEY) == DATA


def test_order_of_bringing_to_the_disk(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on the disk before the name is, and the name before commit returns."""
    backend.create("oci-layout", b"{}")
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(fd: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def spy_replace(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    put(backend)
    # the new directories blobs/ and blobs/sha256/ come between
    # the name itself is brought to the disk with that of an image that needs it
    assert calls == ["file", "directory", "directory", "name"]


class TestPowerCuts:
    @pytest.fixture
    def synced(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was brought to the disk, in order: names of files and directories."""
        seen: list[str] = []
        fsync = os.fsync

        def record(fd: int) -> None:
            seen.append(Path(f"/proc/self/fd/{fd}").readlink().name)
            fsync(fd)

        monkeypatch.setattr(os, "fsync", record)
        return seen

    def test_bytes_are_on_the_disk_before_the_name(
        self, backend: LocalBackend, synced: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No name is given to bytes that a power cut could take away."""
        replace, link = Path.replace, os.link

        def check(self: Path, target: object) -> Path:
            assert self.name in synced
            return replace(self, target)

        def check_link(source: Path, target: object) -> None:
            assert source.name in synced
            link(source, target)

        monkeypatch.setattr(Path, "replace", check)
        monkeypatch.setattr(os, "link", check_link)
        for write in WRITES.values():
            write(backend)
        assert len(synced) > 3

    def test_blobs_are_on_the_disk_before_the_image(self, backend: LocalBackend, synced: list[str]) -> None:
        """The names of blobs are brought to the disk when an image is named, also those of another process."""
        put(LocalBackend(backend.root))
        synced.clear()
        backend.replace("refs/a/_tags/v", b"{}")
        assert synced.index("sha256") < synced.index("_tags")

    def test_a_layer_costs_two(self, backend: LocalBackend, synced: list[str]) -> None:
        """A blob and its cache entry are brought to the disk once each, however many there are."""
        for number in range(2):
            synced.clear()
            writer = backend.open_blob()
            writer.write(b"%d" % number)
            writer.commit(Digest.of(b"%d" % number))
            backend.create(f"cache/layers/{number}", b"{}")
        assert len(synced) == 2


def test_what_cannot_be_looked_at_is_named(backend: LocalBackend) -> None:
    """A link that leads to itself is an error of the storage with its key, not one of the system."""
    put(backend)
    (backend.root / "blobs" / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="blobs/loop"):
        list(backend.list(""))

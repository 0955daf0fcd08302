"""Storage over SFTP, with the server of OpenSSH."""

from __future__ import annotations

import gc
import getpass
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from nixery_core.errors import InvalidConfig, InvalidKey, ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage import fsspec_backend
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.fsspec_backend import SPOOL, FsspecBackend
from nixery_core.storage.keys import BLOBS, blob_key
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing import BackendTests
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.servers import LOOPBACK, free_port, serving


@attrs.frozen(kw_only=True)
class Server:
    """An SSH server that runs."""

    port: int
    key: Path

    @property
    def options(self) -> dict[str, Any]:
        """What open_backend takes."""
        return {
            "key_filename": str(self.key),
            "look_for_keys": False,
            "allow_agent": False,
        }

    def url(self, folder: Path, port: int | None = None) -> str:
        """Return the URL of a folder, also through another port, such as that of a proxy."""
        return f"sftp://{getpass.getuser()}@{LOOPBACK}:{port or self.port}{folder}"


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An SSH server of our own, for SFTP alone."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("not installed: sshd")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "config").write_text(
        f"ListenAddress {LOOPBACK}\nPort {port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/client.pub\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\nUseDNS no\n"
    )
    # the folder that sshd separates its privileges into is made by systemd, or not at all
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with serving([found, "-D", "-e", "-f", folder / "config"], port, log=folder / "log"):
        yield Server(port=port, key=folder / "client")


class TestSftp(BackendTests):
    large = SPOOL + 12345
    examples = 4

    @pytest.fixture
    def backend(self, sshd: Server, tmp_path: Path) -> Backend:
        """Return an empty storage in a folder that is not there yet."""
        return open_backend(sshd.url(tmp_path / "images" / "here"), **sshd.options)

    @pytest.fixture
    def proxied(self, sshd: Server, tmp_path: Path) -> Iterator[tuple[Backend, FaultyProxy]]:
        """Return an empty storage behind a proxy."""
        with FaultyProxy(sshd.port) as proxy:
            yield open_backend(sshd.url(tmp_path / "proxied", proxy.port), **sshd.options), proxy


@pytest.fixture
def backend(sshd: Server, tmp_path: Path) -> FsspecBackend:
    """An empty storage."""
    found = open_backend(sshd.url(tmp_path / "images"), **sshd.options)
    assert isinstance(found, FsspecBackend)
    return found


def test_nothing_is_connected_before_it_is_used() -> None:
    """To open a storage costs nothing, and needs no server."""
    open_backend(f"sftp://{LOOPBACK}:{free_port()}/images")


def test_directory_is_the_same_storage(sshd: Server, backend: FsspecBackend, tmp_path: Path) -> None:
    """What is written over SFTP is what a storage in that directory reads."""
    backend.create("index.json", b"{}")
    descriptor = put_blob(backend, b"blob" * 9_000_000, media_type="text/plain")
    local = LocalBackend(tmp_path / "images")
    assert local.get("index.json") == b"{}"
    assert local.get(blob_key(descriptor.digest)) == b"blob" * 9_000_000


def test_other_machines_create_too(sshd: Server, backend: FsspecBackend, tmp_path: Path) -> None:
    """Of several clients that create one object, exactly one does: the rename of SFTP replaces nothing."""
    assert backend.creates_atomically()
    others = [open_backend(backend.ref.url, **backend.ref.options) for _ in range(4)]
    for attempt in range(5):
        barrier = threading.Barrier(len(others))
        key = f"cache/layers/{attempt}"
        won: list[bytes] = []

        def create(other: Backend, data: bytes, key: str = key, won: list[bytes] = won) -> None:
            barrier.wait(30)  # noqa: B023
            if other.create(key, data):
                won.append(data)

        threads = [threading.Thread(target=create, args=(other, b"%d" % number)) for number, other in enumerate(others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [backend.get(key)]


def test_connections_are_used_again_and_closed(sshd: Server, tmp_path: Path) -> None:
    """A storage has as many connections as calls at once, and none when it is gone."""
    own = open_backend(sshd.url(tmp_path), **sshd.options)
    assert isinstance(own, FsspecBackend)
    for number in range(10):
        own.create(f"cache/layers/{number}", b"x")
    (connection,) = own._filesystems._idle
    transport = connection.client.get_transport()
    assert transport.is_active()
    del own, connection
    gc.collect()
    assert not transport.is_active()


def in_child(backend: Backend, answers: multiprocessing.SimpleQueue) -> None:
    try:
        answers.put((backend.create("cache/layers/child", b"x"), backend.get("cache/layers/parent")))
    except StorageError as error:
        answers.put(error)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_backend_works_after_fork(backend: FsspecBackend) -> None:
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


class TestBadInput:
    def test_wrong_key(self, sshd: Server, tmp_path: Path) -> None:
        """Credentials that the server does not take are an error that names the URL."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
        options = {**sshd.options, "key_filename": str(tmp_path / "other")}
        with pytest.raises(StorageError, match="Authentication") as raised:
            open_backend(sshd.url(tmp_path), **options).get("index.json")
        assert f"sftp://***@{LOOPBACK}:{sshd.port}{tmp_path}" in raised.value.message

    def test_password_is_not_shown(self, sshd: Server, tmp_path: Path) -> None:
        """A password in the URL is in no message."""
        url = f"sftp://me:hunter2@{LOOPBACK}:{sshd.port}{tmp_path}"
        with pytest.raises(StorageError) as raised:
            open_backend(url, look_for_keys=False, allow_agent=False).get("index.json")
        assert "hunter2" not in raised.value.diagnostics() + repr(raised.value)

    def test_nobody_listens(self) -> None:
        """A server that is not there is an error of ours."""
        with pytest.raises(StorageError) as raised:
            open_backend(f"sftp://{LOOPBACK}:{free_port()}/images").get("index.json")
        assert not isinstance(raised.value, ObjectNotFound)

    def test_place_that_may_not_be_written(self, sshd: Server) -> None:
        """Where no directory can be made, nothing is half-written."""
        backend = open_backend(sshd.url(Path("/proc/nixery")), **sshd.options)
        with pytest.raises(StorageError):
            backend.create("index.json", b"{}")
        assert backend.stat("index.json") is None

    def test_keys_that_lead_out(self, backend: FsspecBackend, tmp_path: Path) -> None:
        """No key leaves the storage."""
        (tmp_path / "secret").write_bytes(b"x")
        with pytest.raises(InvalidKey):
            backend.get("../secret")

    def test_missing_host(self) -> None:
        """A URL without a server is refused before anything is tried."""
        with pytest.raises((InvalidConfig, StorageError)):
            open_backend("sftp:///images").get("index.json")


def test_full_and_interrupted_uploads_leave_nothing(backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of which the last piece did not arrive is not published."""
    upload = fsspec_backend.upload
    monkeypatch.setattr(fsspec_backend, "upload", lambda fs, path, pieces, *sizes: upload(fs, path, [b"less"], *sizes))
    writer = backend.open_blob()
    writer.write(bytes(100_000))
    with pytest.raises(StorageError, match="100000 bytes were sent, and 4 arrived"):
        writer.commit(Digest.of(bytes(100_000)))
    assert list(backend.list(BLOBS)) == []
    assert list(backend.list("")) == []

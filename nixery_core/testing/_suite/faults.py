"""What goes wrong: killed processes, readers in the wrong moment, bad connections, slow ones."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from nixery_core.errors import ObjectNotFound, StorageError
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.capabilities import SupportsUploads
from nixery_core.storage.keys import BLOBS, STAGING, blob_key
from nixery_core.testing._suite.base import SuiteBase, at_once, noise, unfinished
from nixery_core.testing.faulty_proxy import FaultyProxy

_ELSEWHERE = """
import pickle, sys
from nixery_core.storage.plugins import open_backend
ref, size = pickle.load(sys.stdin.buffer)
backend = open_backend(ref.url, **ref.options)
"""
_WRITES_FOR_EVER = (
    _ELSEWHERE
    + """
writer = backend.open_blob()
for _ in range(size >> 20):
    writer.write(bytes(1 << 20))
print("writing", flush=True)
while True:
    writer.write(bytes(1 << 10))
"""
)
_READS = _ELSEWHERE + "sys.stdout.buffer.write(backend.get('cache/layers/k'))"


class FaultTests(SuiteBase):
    """Faults of the machine, of other processes, and of the connection."""

    other_processes = True
    """Whether other processes find the same storage by its reference."""

    @pytest.fixture
    def proxied(self) -> tuple[Backend, FaultyProxy]:
        """Return a backend over an empty storage behind a proxy, and the proxy."""
        pytest.skip("this storage is not reached through a proxy")

    def test_another_process_finds_the_same_storage(self, backend: Backend) -> None:
        """A pickled reference opens the same storage in another process."""
        self._needs_other_processes()
        backend.create("cache/layers/k", b"from here")
        found = subprocess.run(
            [sys.executable, "-c", _READS],
            input=pickle.dumps((backend.ref, 0)),
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert found.stdout == b"from here", found.stderr.decode()

    def test_killed_process_publishes_nothing(self, backend: Backend) -> None:
        """What a killed process has written so far is no blob; it can be found and removed."""
        self._needs_other_processes()
        with subprocess.Popen(
            [sys.executable, "-c", _WRITES_FOR_EVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(pickle.dumps((backend.ref, self.large)))
            process.stdin.close()
            assert process.stdout.readline() == b"writing\n"
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        assert list(backend.list(BLOBS)) == []
        _clear(backend)
        assert list(backend.list("")) == []

    def test_writers_of_one_large_blob_at_once(self, backend: Backend) -> None:
        """Writers of one large blob all succeed, and it is whole."""
        data = noise(self.large)
        at_once(3, lambda _: put_blob(backend, data, media_type="text/plain"))
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data

    def test_readers_see_a_whole_blob_or_none(self, backend: Backend) -> None:
        """While a large blob is published, it is not there or it is whole."""
        data = noise(self.large)
        key = blob_key(Digest.of(data))
        done = threading.Event()
        torn: list[str] = []

        def read() -> None:
            while not done.is_set():
                info = backend.stat(key)
                if info is not None and info.size != len(data):
                    torn.append(f"{info.size} bytes of {len(data)}")
                if info is not None and b"".join(backend.stream(key)) != data:
                    torn.append("other bytes")

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            try:
                for _ in range(3):
                    _write(backend, data)
            finally:
                done.set()
            reader.result()
        assert torn == []

    @pytest.mark.parametrize("sent", [0, 100_000])
    def test_broken_upload_is_repeated_or_told(self, proxied: tuple[Backend, FaultyProxy], sent: int) -> None:
        """A connection that breaks once costs a repetition or an error, and never leaves a part."""
        backend, proxy = proxied
        for data in (noise(150_000), noise(self.large)):
            proxy.reset_after(sent, times=1)
            with suppress(StorageError):
                _write(backend, data)
            assert proxy.faults
            proxy.heal()
            whole = [(blob_key(Digest.of(data)), len(data))]
            assert [(info.key, info.size) for info in backend.list(BLOBS)] in ([], whole)
            assert unfinished(backend) == []
            _write(backend, data)
            assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data
            backend.delete(blob_key(Digest.of(data)))

    @pytest.mark.parametrize("received", [0, 100_000])
    def test_broken_download_is_repeated_or_told(self, proxied: tuple[Backend, FaultyProxy], received: int) -> None:
        """Reading over a connection that breaks gives all the bytes or an error, never fewer in silence."""
        backend, proxy = proxied
        data = noise(self.large)
        _write(backend, data)
        key = blob_key(Digest.of(data))
        reads: list[Callable[[], bytes]] = [lambda: backend.get(key), lambda: b"".join(backend.stream(key))]
        for read in reads:
            proxy.cut_off_after(received, times=1)
            with suppress(StorageError):
                assert read() == data
            proxy.heal()
            assert read() == data
        assert proxy.faults

    def test_storage_that_cannot_be_reached(self, proxied: tuple[Backend, FaultyProxy]) -> None:
        """Where every connection breaks, every call is an error of ours, and nothing is published."""
        backend, proxy = proxied
        backend.create("cache/layers/k", b"x")
        writer = backend.open_blob()
        writer.write(noise(self.large))
        proxy.reset_after(0, times=1_000_000)
        calls: list[Callable[[], object]] = [
            lambda: backend.get("cache/layers/k"),
            lambda: backend.stat("cache/layers/k"),
            lambda: backend.create("cache/layers/l", b"x"),
            lambda: list(backend.list("")),
            lambda: writer.commit(Digest.of(noise(self.large))),
            lambda: put_blob(backend, b"small", media_type="text/plain"),
        ]
        for call in calls:
            with pytest.raises(StorageError) as raised:
                call()
            assert not isinstance(raised.value, ObjectNotFound)
        with suppress(StorageError):
            writer.cancel()
        proxy.heal()
        assert list(backend.list(BLOBS)) == []
        # what could not be removed while nobody answered can be now
        _clear(backend)
        assert [info.key for info in backend.list("")] == ["cache/layers/k"]

    def test_slow_storage(self, proxied: tuple[Backend, FaultyProxy]) -> None:
        """A slow connection takes longer, and that is all."""
        backend, proxy = proxied
        data = noise(300_000)
        proxy.slow_down(0.02)
        _write(backend, data)
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data

    def _needs_other_processes(self) -> None:
        if not self.other_processes:
            pytest.skip("other processes do not find this storage")


def _write(backend: Backend, data: bytes) -> None:
    writer = backend.open_blob()
    try:
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        writer.commit(Digest.of(data))
    finally:
        writer.cancel()


def _clear(backend: Backend) -> None:
    """Remove what a writer could not remove itself."""
    for info in list(backend.list(STAGING)):
        backend.delete(info.key)
    if isinstance(backend, SupportsUploads):
        for upload in list(backend.list_uploads()):
            backend.abort_upload(upload)

"""The archive of a layer on its way into the storage: sha256, compression, sha256, blob.

One thread drives a layer: it hands each chunk to whoever has time to hash and to compress it, and
writes the frames in their order.  What nobody has begun when its turn comes, the driver does
itself, so a layer never waits for a thread that may not come, and any number of layers share one
pool without a dead end.  How many chunks wait is bounded: a slow storage slows the reader.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.compression import Codec
from nixery_core.model.digest import Digest
from nixery_core.model.oci import LAYER
from nixery_core.storage.backend import BlobWriter

_HASH_BEHIND = 2
"""Chunks that may wait to be hashed before the driver hashes them itself."""


class Helpers:
    """Threads that hash and compress chunks of layers beside the threads that drive the layers.

    Args:
        executor: Threads of this process, which may have other work too.
        count: How many of them there are.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor = executor
        # one for each thread, and one that is ready when a thread is
        self._places = threading.BoundedSemaphore(count + 1)

    def take_place(self) -> bool:
        """Return whether one more chunk may be compressed or wait for it; never blocks."""
        return self._places.acquire(blocking=False)

    def give_back(self) -> None:
        """Give back the place of a chunk."""
        self._places.release()

    def submit(self, work: Callable[[], None]) -> None:
        """Have a thread do *work* when it has nothing else to do."""
        self._executor.submit(work)


@attrs.frozen(kw_only=True)
class StreamedLayer:
    """What is known of a layer when its last byte has been written."""

    diff_id: Digest
    uncompressed_size: int
    digest: Digest
    size: int
    """Of the compressed blob, bytes."""


class LayerStream:
    """Takes the chunks of one archive and writes the compressed layer; its bytes depend on the chunks alone.

    Args:
        blob: Where the layer goes; neither committed nor cancelled here.
        codec: How it is compressed; chunks have its size, but for the last.
        helpers: Threads that take part; without them everything happens in the calling thread.
        cancellation: Looked at once for each chunk.
    """

    def __init__(self, blob: BlobWriter, codec: Codec, *, helpers: Helpers | None, cancellation: Cancellation) -> None:
        self._blob = blob
        self._codec = codec
        self._helpers = helpers
        self._cancellation = cancellation
        # what is not compressed is its own archive (image-spec, layer.md), so it is hashed once
        self._plain = codec.media_type == LAYER
        self._archive = _Hash(helpers)
        self._compressed = hashlib.sha256()
        self._compressed_size = 0
        self._pending: deque[_Compression] = deque()

    def write(self, chunk: bytes) -> None:
        """Append a chunk; raises what the codec or the storage raises, and Cancelled."""
        self._cancellation.check()
        if self._plain:
            self._archive.add(chunk)
            self._blob.write(chunk)
            return
        self._compress(chunk)
        self._archive.add(chunk)
        while self._pending and self._pending[0].done:
            self._put_oldest()

    def finish(self) -> StreamedLayer:
        """Write what is left and return what the layer is; raises like :meth:`write`."""
        while self._pending:
            self._cancellation.check()
            self._put_oldest()
        diff_id, uncompressed_size = self._archive.finish()
        return StreamedLayer(
            diff_id=diff_id,
            uncompressed_size=uncompressed_size,
            digest=diff_id if self._plain else Digest("sha256", self._compressed.hexdigest()),
            size=uncompressed_size if self._plain else self._compressed_size,
        )

    def abandon(self) -> None:
        """Drop the chunks that are left, and return when no thread works on one."""
        self._archive.abandon()
        running = [work.future for work in self._pending if not work.future.cancel()]
        wait(running)
        while self._pending:
            self._forget(self._pending.popleft())

    def _compress(self, chunk: bytes) -> None:
        helpers = self._helpers
        while helpers is not None:
            if helpers.take_place():
                work = _Compression(self._codec, chunk)
                self._pending.append(work)
                helpers.submit(work.run)
                return
            if not self._pending:
                # other layers have all the places
                break
            self._put_oldest()
        self._put(self._codec.compress(chunk))

    def _put_oldest(self) -> None:
        work = self._pending[0]
        # it stays among the pending until its frame is out of all hands
        frame = work.frame()
        self._pending.popleft()
        self._forget(work)
        self._put(frame)

    def _forget(self, work: _Compression) -> None:
        work.chunk = b""
        if self._helpers is not None:
            self._helpers.give_back()

    def _put(self, frame: bytes | bytearray) -> None:
        self._compressed.update(frame)
        self._compressed_size += len(frame)
        self._blob.write(frame)


class _Hash:
    """The hash of chunks in their order, computed by whoever has time, one at a time."""

    def __init__(self, helpers: Helpers | None) -> None:
        self._helpers = helpers
        self._state = hashlib.sha256()
        self._size = 0
        self._waiting: deque[bytes] = deque()
        self._turn = threading.Lock()

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._helpers is None:
            self._state.update(chunk)
            return
        self._waiting.append(chunk)
        if len(self._waiting) > _HASH_BEHIND:
            self._catch_up()
        else:
            self._helpers.submit(self._help)

    def finish(self) -> tuple[Digest, int]:
        """Return the digest of all chunks, and their size in bytes."""
        self._catch_up()
        return Digest("sha256", self._state.hexdigest()), self._size

    def abandon(self) -> None:
        """Forget what waits, and return when no thread works on it."""
        self._waiting.clear()
        with self._turn:
            pass

    def _help(self) -> None:
        # whoever has the turn does this chunk too, or the driver does in the end
        if self._turn.acquire(blocking=False):
            try:
                self._update()
            finally:
                self._turn.release()

    def _catch_up(self) -> None:
        with self._turn:
            self._update()

    def _update(self) -> None:
        while self._waiting:
            try:
                chunk = self._waiting.popleft()
            except IndexError:  # abandoned since we looked
                return
            self._state.update(chunk)


class _Compression:
    """One chunk that is compressed by whoever comes first."""

    __slots__ = ("chunk", "codec", "future")

    def __init__(self, codec: Codec, chunk: bytes) -> None:
        self.codec = codec
        self.chunk = chunk
        """Emptied when the frame is taken: the executor keeps what it was given until a thread is free."""
        self.future: Future[bytes | bytearray] = Future()

    @property
    def done(self) -> bool:
        return self.future.done()

    def run(self) -> None:
        """Compress the chunk in a helping thread, unless the driver came first."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.codec.compress(self.chunk))
        except BaseException as error:  # noqa: BLE001 - the driver raises it
            self.future.set_exception(error)

    def frame(self) -> bytes | bytearray:
        """Return the frame: compressed here if nobody began it, else when it is ready."""
        if self.future.cancel():
            return self.codec.compress(self.chunk)
        return self.future.result()

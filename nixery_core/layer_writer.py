"""From entries to a layer in the storage, in one pass: tar, sha256, compression, sha256, blob."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import attrs

from nixery_core.archive import ArchiveEntry, store_entries, write_archive
from nixery_core.cancellation import Cancellation
from nixery_core.compression import Codec, codec
from nixery_core.errors import InvalidDocument, ObjectNotFound, StorageError
from nixery_core.events import EventCallback, LayerProgress, ignore_events
from nixery_core.layer_stream import Helpers, LayerStream
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Descriptor, Document
from nixery_core.model.storepath import StorePath
from nixery_core.storage.backend import Backend, BackendRef
from nixery_core.storage.blobs import blob_exists
from nixery_core.storage.capabilities import with_events
from nixery_core.storage.keys import layer_cache_key
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.reader import StoreReader

FORMAT_VERSION = 1
"""Of the cache entry of a layer."""
PROGRESS = 4 << 20
"""Bytes of file content between two LayerProgress events."""


@attrs.frozen(kw_only=True)
class BuiltLayer(Document):
    """A layer that is in the storage, with all that a manifest and a configuration need to name it."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=attrs.validators.in_([FORMAT_VERSION]))
    layer_key: str
    """The identity of its input: store paths, archive format, codec."""
    descriptor: Descriptor
    """Of the compressed blob."""
    diff_id: Digest
    """sha256 of the uncompressed archive: equal on every machine."""
    uncompressed_size: int = attrs.field(validator=attrs.validators.ge(0))
    """Size of the uncompressed archive, bytes."""


@attrs.frozen
class LayerWriter:
    """Writes layers into a storage; nothing is published before a layer is whole.

    The bytes of a layer depend on its entries and the codec alone, however many threads take part.
    """

    backend: Backend
    codec: Codec
    helpers: Helpers | None = None
    """Threads that compress beside the calling one; without them it does everything itself."""

    def write(
        self,
        entries: Iterable[ArchiveEntry],
        *,
        layer_key: str,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> BuiltLayer:
        """Archive, hash, compress and store *entries* in one pass and constant memory.

        Raises:
            StoreReadError: An entry cannot be read or archived.
            StorageError: The storage failed.
            Cancelled: Through *cancellation*, which is looked at once for each chunk of the codec.

        Whatever is raised, also by *on_event*, nothing was published and nothing is left behind.
        """
        token = Cancellation() if cancellation is None else cancellation
        token.check()
        blob = self.backend.open_blob()
        stream = LayerStream(blob, self.codec, helpers=self.helpers, cancellation=token)
        try:
            progress = _Progress(layer_key, on_event)
            write_archive(entries, stream.write, piece_bytes=self.codec.chunk_bytes, on_progress=progress.report)
            streamed = stream.finish()
            token.check()
            blob.commit(streamed.digest)
        except BaseException:
            stream.abandon()
            # the first cause is the one to raise
            with suppress(StorageError):
                blob.cancel()
            raise
        return BuiltLayer(
            layer_key=layer_key,
            descriptor=Descriptor(self.codec.media_type, streamed.digest, streamed.size),
            diff_id=streamed.diff_id,
            uncompressed_size=streamed.uncompressed_size,
        )


class _Progress:
    """Tells of every few MiB, not of every piece."""

    def __init__(self, layer_key: str, on_event: EventCallback) -> None:
        self._layer_key = layer_key
        self._on_event = on_event
        self._told = 0

    def report(self, archived: int) -> None:
        if archived - self._told >= PROGRESS:
            self._told = archived
            self._on_event(LayerProgress(layer_key=self._layer_key, archived=archived))


@attrs.frozen
class LayerCache:
    """Finds and keeps what is known of layers; an entry whose blob is gone is a miss."""

    backend: Backend

    def find(self, layer_key: str) -> BuiltLayer | None:
        """Return the layer under *layer_key* after looking for its blob, or None; raises StorageError.

        An entry that cannot be read, or speaks of another layer, is a miss.
        """
        try:
            built = BuiltLayer.from_bytes(self.backend.get(layer_cache_key(layer_key)))
        except (ObjectNotFound, InvalidDocument):
            return None
        if built.layer_key != layer_key or not blob_exists(self.backend, built.descriptor):
            return None
        return built

    def store(self, built: BuiltLayer) -> BuiltLayer:
        """Keep *built*, whose blob is in the storage, and return what is kept: the first writer wins.

        An entry that :meth:`find` calls a miss is replaced.
        """
        key, data = layer_cache_key(built.layer_key), built.to_bytes()
        if self.backend.create(key, data, content_type="application/json"):
            return built
        winner = self.find(built.layer_key)
        if winner is not None:
            return winner
        self.backend.replace(key, data, content_type="application/json")
        return built


@attrs.frozen(kw_only=True)
class LayerJob:
    """All that is needed to write one layer of store paths, in any thread or process that sees them; it pickles."""

    paths: tuple[StorePath, ...]
    nar_size: int
    """Sum of their NAR sizes, bytes."""
    layer_key: str
    reader: StoreReader
    backend: BackendRef
    codec: str
    """Name of the codec, as :func:`~nixery_core.compression.codec` takes it."""
    nar_hashes: Mapping[StorePath, Digest] = attrs.field(factory=dict)
    """What the paths must hash to; those that are not in it are believed."""


def build_layer(
    job: LayerJob,
    *,
    on_event: EventCallback = ignore_events,
    cancellation: Cancellation | None = None,
    helpers: Helpers | None = None,
) -> BuiltLayer:
    """Write the layer of *job* and keep its cache entry; raises as :meth:`LayerWriter.write` does.

    The entry is written last, so it never speaks of a blob that is not there.
    """
    backend = with_events(open_backend(job.backend.url, **job.backend.options), on_event)
    entries = store_entries(job.paths, job.reader, nar_hashes=job.nar_hashes)
    writer = LayerWriter(backend, codec(job.codec), helpers)
    built = writer.write(entries, layer_key=job.layer_key, on_event=on_event, cancellation=cancellation)
    return LayerCache(backend).store(built)

"""What a client that has one image pulls for another."""

from __future__ import annotations

import attrs

from nixery_core.errors import InvalidDocument
from nixery_core.model.oci import Descriptor, ImageConfig, ImageIndex, Manifest
from nixery_core.storage.backend import Backend
from nixery_core.storage.blobs import read_blob


@attrs.frozen(kw_only=True)
class ComparedLayer:
    """A layer of the second image."""

    descriptor: Descriptor
    holds: str
    """What the history of the image says of it: the names of its store paths, the first of them if they are many."""
    shared: bool
    """Whether the first image has it, so that it is not pulled."""


@attrs.frozen(kw_only=True)
class Comparison:
    """Two images of a storage, seen by a client that has the first and asks for the second."""

    first: Descriptor
    second: Descriptor
    layers: tuple[ComparedLayer, ...]
    """Those of the second image, in manifest order, bottom layer first."""
    dropped: tuple[ComparedLayer, ...]
    """Those of the first image that the second does not have."""
    common_bottom: int
    """How many layers from the bottom are the same: what stores that name layers by their chain share."""
    documents: int
    """Bytes of the manifest and the configuration of the second image, if they are pulled."""

    @property
    def pulled(self) -> int:
        """Bytes of all layers that are pulled."""
        return sum(layer.descriptor.size for layer in self.layers if not layer.shared)

    @property
    def shared(self) -> int:
        """Bytes of all layers that are there already."""
        return sum(layer.descriptor.size for layer in self.layers if layer.shared)


def compare_images(backend: Backend, first: Descriptor, second: Descriptor) -> Comparison:
    """Compare two images by the digests of their layers; no layer is read.

    Raises:
        ObjectNotFound: A document of an image is not in the storage.
        DigestMismatch: A document is damaged.
        InvalidDocument: One of the two is no image, such as an index of several platforms.
    """
    of_first, of_second = _layers(backend, first), _layers(backend, second)
    had = {descriptor.digest for descriptor, _ in of_first}
    asked = {descriptor.digest for descriptor, _ in of_second}
    common = 0
    for (one, _), (other, _) in zip(of_first, of_second, strict=False):
        if one.digest != other.digest:
            break
        common += 1
    manifest = Manifest.from_bytes(read_blob(backend, second))
    return Comparison(
        first=first,
        second=second,
        layers=tuple(
            ComparedLayer(descriptor=descriptor, holds=holds, shared=descriptor.digest in had)
            for descriptor, holds in of_second
        ),
        dropped=tuple(
            ComparedLayer(descriptor=descriptor, holds=holds, shared=False)
            for descriptor, holds in of_first
            if descriptor.digest not in asked
        ),
        common_bottom=common,
        documents=0 if first.digest == second.digest else second.size + manifest.config.size,
    )


def _layers(backend: Backend, image: Descriptor) -> list[tuple[Descriptor, str]]:
    """Return the layers of an image, and what its history says of each."""
    data = read_blob(backend, image)
    try:
        manifest = Manifest.from_bytes(data)
    except InvalidDocument:
        if not _is_index(data):
            raise
        raise InvalidDocument(
            f"{image.digest} is an index of images for several platforms",
            hint="name the digest of the image for one platform",
        ) from None
    config = ImageConfig.from_bytes(read_blob(backend, manifest.config))
    comments = [entry.comment or "" for entry in config.history if not entry.empty_layer]
    comments += [""] * (len(manifest.layers) - len(comments))
    return list(zip(manifest.layers, comments, strict=False))


def _is_index(data: bytes) -> bool:
    try:
        ImageIndex.from_bytes(data)
    except InvalidDocument:
        return False
    return True

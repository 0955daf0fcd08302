"""What a build gives back: an image in the storage, or the plan of one."""

from __future__ import annotations

import attrs

from nixery_core.layer_writer import BuiltLayer
from nixery_core.layering import LayerPlan
from nixery_core.model.closure import Closure
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import Descriptor, ImageConfig, Manifest
from nixery_core.model.package import ResolvedPackage


@attrs.frozen(kw_only=True)
class Image:
    """An image that is whole in the storage: every blob of it can be read."""

    spec: ImageSpec
    """What was asked for."""
    revision: str | None
    """The revision of the package source, or None where it moves."""
    descriptor: Descriptor
    """Of the manifest: its digest names the image."""
    manifest: Manifest
    config: ImageConfig
    layers: tuple[BuiltLayer, ...]
    """In manifest order, bottom layer first; the customisation layer is the last."""
    cached: bool
    """Whether the whole image came from the manifest cache."""

    @property
    def size(self) -> int:
        """Sum of the layer blobs, bytes: what a client without any layer pulls."""
        return sum(layer.descriptor.size for layer in self.layers)


@attrs.frozen(kw_only=True)
class PlannedLayer:
    """A layer of an image that may not be built yet."""

    plan: LayerPlan
    layer_key: str
    built: BuiltLayer | None
    """The layer in the storage, or None where it has to be written."""


@attrs.frozen(kw_only=True)
class ImagePlan:
    """How an image would be split into layers."""

    spec: ImageSpec
    revision: str | None
    packages: tuple[ResolvedPackage, ...]
    closure: Closure
    layers: tuple[PlannedLayer, ...]
    """In manifest order, bottom layer first; the customisation layer is not among them."""

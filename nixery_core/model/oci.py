"""OCI image documents: descriptor, manifest, index, image configuration; canonical bytes.

Source: OCI image-spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import attrs

from nixery_core.errors import InvalidDocument
from nixery_core.model._converter import structure, unstructure
from nixery_core.model.digest import Digest
from nixery_core.model.platform import Platform

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
LAYOUT_BYTES = b'{"imageLayoutVersion":"1.0.0"}'
"""The content of ``oci-layout`` (image-layout.md)."""

REF_NAME = "org.opencontainers.image.ref.name"
REVISION = "org.opencontainers.image.revision"
SOURCE = "org.opencontainers.image.source"
EPOCH = "1970-01-01T00:00:00Z"

_T = TypeVar("_T", bound="Document")


def canonical_json(value: object) -> bytes:
    """Return *value* as JSON with sorted keys, no spaces, UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@attrs.frozen
class Document:
    """Base of the JSON documents: strict to read, canonical to write."""

    MEDIA_TYPE: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the document as plain JSON values, names as in the specification, empty fields left out."""
        result = unstructure(self)
        assert isinstance(result, dict)
        return result

    def to_bytes(self) -> bytes:
        """Return the canonical bytes of the document."""
        return canonical_json(self.to_json())

    @classmethod
    def from_json(cls: type[_T], value: object) -> _T:
        """Read plain JSON values; unknown fields are ignored as the specification asks; raises InvalidDocument."""
        return structure(value, cls)

    @classmethod
    def from_bytes(cls: type[_T], data: bytes) -> _T:
        """Read the bytes of a JSON document; raises InvalidDocument."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidDocument(f"{cls.__name__} is not JSON: {error}") from None
        return cls.from_json(value)


@attrs.frozen
class ImagePlatform(Document):
    """The ``platform`` of a descriptor in an index."""

    architecture: str
    os: str
    variant: str | None = None

    @classmethod
    def of(cls, platform: Platform) -> ImagePlatform:
        """Return the OCI form of *platform*."""
        return cls(platform.architecture, platform.os, platform.variant)


@attrs.frozen
class Descriptor(Document):
    """What a blob is, how large, and which bytes.

    >>> Descriptor.of("text/plain", b"hi").size
    2
    """

    media_type: str
    digest: Digest
    size: int = attrs.field(validator=attrs.validators.ge(0))
    """Size of the blob, bytes."""
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    platform: ImagePlatform | None = None
    artifact_type: str | None = None

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        """Return the descriptor of *data*."""
        return cls(media_type, Digest.of(data), len(data))


@attrs.frozen(kw_only=True)
class Manifest(Document):
    """An image manifest: one configuration and the layers, bottom layer first."""

    MEDIA_TYPE: ClassVar[str] = MANIFEST

    schema_version: int = attrs.field(default=2, validator=attrs.validators.in_([2]))
    media_type: str = attrs.field(default=MANIFEST, validator=attrs.validators.in_([MANIFEST]))
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    subject: Descriptor | None = None
    artifact_type: str | None = None


@attrs.frozen(kw_only=True)
class ImageIndex(Document):
    """An image index: manifests by platform or by name."""

    MEDIA_TYPE: ClassVar[str] = INDEX

    schema_version: int = attrs.field(default=2, validator=attrs.validators.in_([2]))
    media_type: str = attrs.field(default=INDEX, validator=attrs.validators.in_([INDEX]))
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict)


def _set(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts)))


@attrs.frozen(kw_only=True)
class ContainerConfig(Document):
    """How a container of the image runs: the ``config`` object of the image configuration (config.md)."""

    user: str = ""
    exposed_ports: tuple[str, ...] = attrs.field(default=(), converter=_set)
    """``port[/protocol]``; sorted, distinct: an object with empty values in JSON."""
    env: tuple[str, ...] = ()
    """``NAME=value``, in order."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: tuple[str, ...] = attrs.field(default=(), converter=_set)
    """Absolute paths; sorted, distinct: an object with empty values in JSON."""
    working_dir: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    stop_signal: str = ""


@attrs.frozen
class RootFS(Document):
    """The layers of an image by the digests of their uncompressed tar archives, bottom layer first."""

    diff_ids: tuple[Digest, ...]
    type: str = attrs.field(default="layers", validator=attrs.validators.in_(["layers"]))


@attrs.frozen(kw_only=True)
class History(Document):
    """How one layer came to be."""

    created: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool = False


@attrs.frozen(kw_only=True)
class ImageConfig(Document):
    """The image configuration: platform, run configuration, diff_ids (config.md)."""

    MEDIA_TYPE: ClassVar[str] = CONFIG

    architecture: str
    os: str
    variant: str | None = None
    created: str | None = None
    """RFC 3339 date and time."""
    author: str | None = None
    config: ContainerConfig = attrs.field(factory=ContainerConfig)
    rootfs: RootFS
    history: tuple[History, ...] = ()

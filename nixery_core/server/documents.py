"""Manifests as they are served: bytes, type, what they name; and Docker's form of them.

Source: image-spec, manifest.md and image-index.md; Docker's "Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from nixery_core.errors import InvalidDigest, InvalidDocument
from nixery_core.model.digest import Digest
from nixery_core.model.oci import CONFIG, INDEX, LAYER, LAYER_GZIP, MANIFEST, canonical_json
from nixery_core.server.replies import RawHeaders, raw_headers

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = frozenset({MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST})
MAX_MANIFEST = 4 << 20
"""Most bytes of a manifest: what the specification asks registries to take."""

# Docker knows no zstd
_DOCKER_TYPES: Mapping[str, str] = MappingProxyType(
    {
        MANIFEST: DOCKER_MANIFEST,
        INDEX: DOCKER_LIST,
        CONFIG: "application/vnd.docker.container.image.v1+json",
        LAYER: "application/vnd.docker.image.rootfs.diff.tar",
        LAYER_GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
)


@attrs.frozen
class ServedManifest:
    """A manifest or an index that is in the storage."""

    digest: str
    media_type: str
    body: bytes = attrs.field(repr=False)
    blobs: frozenset[str] = attrs.field(repr=False)
    """Digests of the configuration and the layers."""
    children: tuple[str, ...]
    """Digests of the manifests of an index, in order."""
    config: Digest | None
    """Digest of the configuration: the image ID, the same in all forms of a manifest; None of an index."""
    headers: RawHeaders = attrs.field(eq=False, repr=False)
    """What a response to GET or HEAD says."""
    etag: str


def served_manifest(body: bytes) -> ServedManifest:
    """Read a manifest of any of the four types; raises InvalidDocument for everything else."""
    document = _document(body)
    media_type = document.get("mediaType")
    if media_type not in MANIFEST_TYPES:
        raise InvalidDocument(f"{media_type!r} is not the type of a manifest")
    digest = str(Digest.of(body))
    named = [document.get("config"), *(document.get("layers") or ())]
    etag = f'"{digest}"'
    return ServedManifest(
        digest=digest,
        media_type=media_type,
        body=body,
        blobs=frozenset(_digests(named)),
        children=tuple(_digests(document.get("manifests") or ())),
        config=_config(document.get("config")),
        headers=raw_headers(
            [
                ("content-type", media_type),
                ("content-length", str(len(body))),
                ("docker-content-digest", digest),
                ("etag", etag),
            ]
        ),
        etag=etag,
    )


def docker_manifest(body: bytes) -> bytes | None:
    """Return Docker's form of an image manifest, or None where Docker has no word for a layer.

    It names the same configuration and layers; annotations have no place in it.
    """
    document = _document(body)
    try:
        return canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": _DOCKER_TYPES[document["mediaType"]],
                "config": _docker_descriptor(document["config"]),
                "layers": [_docker_descriptor(layer) for layer in document["layers"]],
            }
        )
    except KeyError:
        return None


def docker_list(body: bytes, children: Mapping[str, ServedManifest]) -> bytes:
    """Return Docker's form of an index; *children* are Docker's forms of what it names, by the digests in it."""
    document = _document(body)
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_LIST,
            "manifests": [
                {
                    "mediaType": children[child["digest"]].media_type,
                    "digest": children[child["digest"]].digest,
                    "size": len(children[child["digest"]].body),
                    "platform": child["platform"],
                }
                for child in document["manifests"]
                if child["digest"] in children
            ],
        }
    )


def _docker_descriptor(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mediaType": _DOCKER_TYPES[descriptor["mediaType"]],
        "size": descriptor["size"],
        "digest": descriptor["digest"],
    }


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidDocument("it is not a JSON object")
    return document


def _config(descriptor: Any) -> Digest | None:
    if not isinstance(descriptor, dict):
        return None
    try:
        return Digest.parse(str(descriptor.get("digest")))
    except InvalidDigest:
        return None


def _digests(descriptors: Any) -> list[str]:
    if not isinstance(descriptors, (list, tuple)):
        raise InvalidDocument("its descriptors are not a list")
    found = (descriptor.get("digest") for descriptor in descriptors if isinstance(descriptor, dict))
    return [digest for digest in found if isinstance(digest, str)]

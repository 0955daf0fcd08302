"""An image as ``docker save`` writes it (``docker-archive:`` of skopeo and podman)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from nixery_core.archive import ArchiveEntry, write_archive
from nixery_core.errors import InvalidName
from nixery_core.export._blobs import read_config, read_manifest, unpacked, unpacked_size
from nixery_core.export._members import document, member
from nixery_core.model.digest import Digest
from nixery_core.model.names import check_name, check_tag
from nixery_core.model.oci import LAYER, Descriptor, canonical_json
from nixery_core.storage.backend import Backend

_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")


def write_docker_archive(
    manifest: Descriptor,
    backend: Backend,
    *,
    reference: str,
    write: Callable[[bytes], object],
    sizes: Mapping[Digest, int] | None = None,
) -> None:
    """Write the image *manifest* as a Docker archive: layers unpacked, each once.

    Equal images and references give equal bytes, whatever compression the storage has.  Memory does
    not grow with the image.

    Args:
        manifest: Descriptor of an image manifest in *backend*.
        backend: Where its blobs are; every byte is checked against its digest and its diff_id.
        reference: The name to load the image under: ``[host[:port]/]name[:tag]``; ``latest`` is
            the tag where there is none.
        write: Takes the archive in pieces; what was written is only an archive if no error follows.
        sizes: Size of each layer's archive by its diff_id, bytes.  An archive needs the size of a
            member before its content, so a layer that is not among them is read twice.

    Raises:
        InvalidDocument: *manifest* is no image manifest.
        InvalidName, InvalidTag: *reference* is none that Docker accepts.
        StorageError: A blob is missing (ObjectNotFound) or damaged (DigestMismatch).

    Source: moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format".
    """
    repo_tag = tagged(reference)
    image = read_manifest(backend, manifest)
    config_bytes, config = read_config(backend, image)
    layers = dict(zip(config.rootfs.diff_ids, image.layers, strict=True))
    config_name = f"{image.config.digest.hex}.json"
    loaded = {
        "Config": config_name,
        "RepoTags": [repo_tag],
        "Layers": [_layer_name(diff_id) for diff_id in config.rootfs.diff_ids],
    }

    def entries() -> Iterator[ArchiveEntry]:
        members: dict[str, Callable[[], ArchiveEntry]] = {
            config_name: partial(document, config_name, config_bytes),
            "manifest.json": partial(document, "manifest.json", canonical_json([loaded])),
        }
        for diff_id, layer in layers.items():
            members[_layer_name(diff_id)] = partial(_layer, backend, layer, diff_id, (sizes or {}).get(diff_id))
        for name in sorted(members):
            yield members[name]()

    write_archive(entries(), write)


def tagged(reference: str) -> str:
    """Return *reference* with a tag, if Docker accepts it; raises InvalidName or InvalidTag.

    Source: distribution/reference, "Grammar".

    >>> tagged("localhost:5000/shell/git"), tagged("hello:1.0")
    ('localhost:5000/shell/git:latest', 'hello:1.0')
    """
    repository, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = reference, "latest"
    host, slash, path = repository.partition("/")
    is_host = slash and ("." in host or ":" in host or host == "localhost")
    if is_host and not _HOST.fullmatch(host):
        raise InvalidName(f"{reference!r} does not begin with the name of a host", hint="write host[:port]/name:tag")
    check_name(path if is_host else repository)
    return f"{repository}:{check_tag(tag)}"


def _layer_name(diff_id: Digest) -> str:
    return f"{diff_id.hex}.tar"


def _layer(backend: Backend, layer: Descriptor, diff_id: Digest, size: int | None) -> ArchiveEntry:
    if size is None:
        size = layer.size if layer.media_type == LAYER else unpacked_size(backend, layer, diff_id)
    return member(_layer_name(diff_id), size, partial(unpacked, backend, layer, diff_id, size))

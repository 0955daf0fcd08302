"""The formats of exported images by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nixery_core.errors import InvalidConfig, nearest
from nixery_core.export.docker_archive import write_docker_archive
from nixery_core.export.oci_archive import write_oci_archive
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Descriptor
from nixery_core.storage.backend import Backend

FORMATS = ("docker-archive", "oci-archive")
"""What :func:`export_image` can write; the names are skopeo's."""


def export_image(
    manifest: Descriptor,
    backend: Backend,
    *,
    format: str,  # noqa: A002 - what everybody calls it
    reference: str,
    write: Callable[[bytes], object],
    sizes: Mapping[Digest, int] | None = None,
) -> None:
    """Write the image *manifest* of *backend* in one of FORMATS.

    The other arguments are those of :func:`write_docker_archive` and :func:`write_oci_archive`.
    Raises InvalidConfig for an unknown *format*, and what these two raise.
    """
    if format == "docker-archive":
        write_docker_archive(manifest, backend, reference=reference, write=write, sizes=sizes)
    elif format == "oci-archive":
        write_oci_archive(manifest, backend, reference=reference, write=write)
    else:
        near = nearest(format, FORMATS, limit=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(FORMATS)}"
        raise InvalidConfig(f"there is no image format {format!r}", hint=hint)

"""Images of the storage as one file, for ``docker load``, ``podman load`` and ``skopeo copy``."""

from nixery_core.export.atomic_file import write_file_atomically
from nixery_core.export.docker_archive import write_docker_archive
from nixery_core.export.formats import FORMATS, export_image
from nixery_core.export.oci_archive import write_oci_archive

__all__ = ["FORMATS", "export_image", "write_docker_archive", "write_file_atomically", "write_oci_archive"]

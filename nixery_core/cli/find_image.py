"""Images of a storage by what a person calls them."""

from __future__ import annotations

from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.model.names import check_name, check_tag
from nixery_core.model.oci import MANIFEST, Descriptor
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import blob_key
from nixery_core.storage.layout import read_ref


def find_image(backend: Backend, text: str) -> Descriptor:
    """Return the image called *text*, ``NAME[:TAG]`` or a digest; raises ObjectNotFound, InvalidName."""
    if text.startswith("sha256:"):
        digest = Digest.parse(text)
        info = backend.stat(blob_key(digest))
        if info is not None:
            return Descriptor(MANIFEST, digest, info.size)
    else:
        name, _, tag = text.partition(":")
        found = read_ref(backend, check_name(name), check_tag(tag or "latest"))
        if found is not None:
            return found
    raise ObjectNotFound(
        f"there is no image {text} in the storage", hint="list all with: nixery-core inspect --store URL"
    )

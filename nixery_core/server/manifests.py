"""From a name and a tag, or a digest, to the manifest that answers it.

Whatever is answered is in the storage under its digest before: a client that asks for the tag
with HEAD and then for the digest gets what it was promised, from any replica.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import attrs

from nixery_core.assemble import provenance
from nixery_core.builder import ImageBuilder
from nixery_core.errors import DigestMismatch, InvalidDocument, ObjectNotFound, PackageError
from nixery_core.image import Image
from nixery_core.model.digest import Digest
from nixery_core.model.image import ImageSpec
from nixery_core.model.names import META_PACKAGES
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor, ImageIndex, ImagePlatform
from nixery_core.model.platform import Platform
from nixery_core.server.accept import choose
from nixery_core.server.clients import Client, Patience
from nixery_core.server.documents import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_MANIFEST,
    ServedManifest,
    docker_list,
    docker_manifest,
    served_manifest,
)
from nixery_core.server.memory import ManifestMemory
from nixery_core.server.refusals import manifest_unknown
from nixery_core.server.settings import SpecFactory
from nixery_core.server.threads import Threads
from nixery_core.sources import Pin
from nixery_core.storage.blobs import put_blob, read_blob
from nixery_core.storage.keys import blob_key
from nixery_core.storage.layout import publish_ref

_MOST_CONVERTED = 10_000


class Manifests:
    """Finds, builds and converts manifests; remembers them."""

    def __init__(
        self,
        builder: ImageBuilder,
        patience: Patience,
        memory: ManifestMemory,
        threads: Threads,
        *,
        parse: SpecFactory,
        platforms: Sequence[Platform] = (),
    ) -> None:
        self._builder = builder
        self._patience = patience
        self._memory = memory
        self._threads = threads
        self._parse = parse
        self._platforms = tuple(platforms)
        self._docker: OrderedDict[str, str] = OrderedDict()

    async def of_tag(self, name: str, tag: str, accept: tuple[bytes, ...], client: Client) -> ServedManifest:
        """Return what *name*:*tag* stands for, in a form that the client takes; raises Refusal and NixeryError."""
        manifest = self._memory.of_tag(name, tag)
        if manifest is None:
            manifest = await self._look_up(name, tag, client)
            self._memory.keep_tag(name, tag, manifest)
        return await self._in_form(manifest, accept)

    async def of_digest(self, digest: str) -> ServedManifest:
        """Return the manifest of a digest, in its own form; raises Refusal where there is none."""
        manifest = self._memory.of_digest(digest)
        if manifest is None:
            manifest = await self._threads.share(("digest", digest), lambda: self._threads.run(self._read, digest))
            self._memory.keep(manifest)
        return manifest

    async def _look_up(self, name: str, tag: str, client: Client) -> ServedManifest:
        spec = self._parse(name, tag)
        several = self._platforms and not any(
            word in META_PACKAGES and META_PACKAGES[word].platform for word in name.split("/")
        )
        if several:
            return await self._index(spec, client)
        image, _ = await self._image(spec, client, publish=True)
        return await self.of_digest(str(image.descriptor.digest))

    async def _image(self, spec: ImageSpec, client: Client, *, publish: bool) -> tuple[Image, Pin]:
        key = ("image", spec.name, spec.tag, spec.platform.system)
        pin, image = await self._threads.share(key, lambda: self._threads.run(self._find, spec, publish=publish))
        return image or await self._patience.image(spec, pin, client, publish=publish), pin

    def _find(self, spec: ImageSpec, *, publish: bool) -> tuple[Pin, Image | None]:
        pin = self._builder.source.pin(spec.tag)
        return pin, self._builder.find(spec, pin=pin, publish=publish)

    async def _index(self, spec: ImageSpec, client: Client, *, again: bool = False) -> ServedManifest:
        """Return an index of the platforms that the package set has all the packages for.

        Any other failure is one of the whole request: what a tag gives must not depend on luck.
        """
        specs = [attrs.evolve(spec, platform=platform) for platform in self._platforms]
        tasks = [asyncio.ensure_future(self._image(one, client, publish=False)) for one in specs]
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
        failures = [error for task in tasks if (error := task.exception()) is not None]
        final = [error for error in failures if not isinstance(error, PackageError)]
        if final or len(failures) == len(tasks):
            raise (final or failures)[0]
        images = [
            (one.platform, *task.result()) for one, task in zip(specs, tasks, strict=True) if task.exception() is None
        ]
        index = ImageIndex(
            manifests=tuple(
                attrs.evolve(image.descriptor, platform=ImagePlatform.of(platform)) for platform, image, _ in images
            ),
            annotations=provenance(images[0][2]),
        )
        try:
            return await self._threads.run(self._publish, spec, index)
        except ObjectNotFound:
            # a collector of garbage took a blob of an image that was old: now that it is gone it is built again
            if again:
                raise
            return await self._index(spec, client, again=True)

    def _publish(self, spec: ImageSpec, index: ImageIndex) -> ServedManifest:
        body = index.to_bytes()
        descriptor = put_blob(self._builder.backend, body, media_type=INDEX)
        publish_ref(self._builder.backend, spec.name, spec.tag, descriptor)
        return served_manifest(body)

    def _read(self, digest: str) -> ServedManifest:
        backend, parsed = self._builder.backend, Digest.parse(digest)
        try:
            # a layer has a digest too, and must not fill our memory
            info = backend.stat(blob_key(parsed))
            if info is None or info.size > MAX_MANIFEST:
                raise manifest_unknown(f"there is no manifest {digest}")
            return served_manifest(read_blob(backend, Descriptor("", parsed, info.size)))
        except (ObjectNotFound, InvalidDocument, DigestMismatch):
            raise manifest_unknown(f"there is no manifest {digest}") from None

    async def _in_form(self, manifest: ServedManifest, accept: tuple[bytes, ...]) -> ServedManifest:
        if manifest.media_type == INDEX:
            form = choose(accept, (INDEX, DOCKER_LIST, MANIFEST, DOCKER_MANIFEST))
            if form in (MANIFEST, DOCKER_MANIFEST) and manifest.children:
                # a client that knows no indexes gets the first platform, as from other registries
                return await self._in_form(await self.of_digest(manifest.children[0]), accept)
        else:
            form = choose(accept, (MANIFEST, DOCKER_MANIFEST))
        if form == manifest.media_type:
            return manifest
        converted = None if form is None else await self._converted(manifest)
        if converted is None:
            raise manifest_unknown(
                f"the manifest is {manifest.media_type}, which the Accept header of the client leaves out"
            )
        return converted

    async def _converted(self, manifest: ServedManifest) -> ServedManifest | None:
        known = self._docker.get(manifest.digest)
        found = self._memory.of_digest(known) if known else None
        if found is not None:
            return found
        if manifest.media_type == MANIFEST:
            body = docker_manifest(manifest.body)
        else:
            children = {child: await self._converted(await self.of_digest(child)) for child in manifest.children}
            had = {digest: child for digest, child in children.items() if child is not None}
            body = docker_list(manifest.body, had) if had else None
        if body is None:
            return None
        converted = served_manifest(body)
        await self._threads.run(put_blob, self._builder.backend, body, media_type=converted.media_type)
        self._memory.keep(converted)
        self._docker[manifest.digest] = converted.digest
        while len(self._docker) > _MOST_CONVERTED:
            self._docker.popitem(last=False)
        return converted

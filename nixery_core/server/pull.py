"""Answers to requests for manifests and blobs.  Source: distribution-spec, "Pull"."""

from __future__ import annotations

from collections.abc import Callable

from nixery_core.errors import ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.server.access import Allowed
from nixery_core.server.binding import Binding
from nixery_core.server.clients import Client
from nixery_core.server.files import send_file, send_stream
from nixery_core.server.manifests import Manifests
from nixery_core.server.memory import ManifestMemory
from nixery_core.server.ranges import Part, is_unchanged, wanted_part
from nixery_core.server.refusals import Refusal, blob_unknown, manifest_unknown
from nixery_core.server.replies import RawHeaders, Receive, Scope, Send, header, header_lines, raw_headers, reply
from nixery_core.server.targets import Target
from nixery_core.server.threads import Threads
from nixery_core.server.warm_up import INTERNAL
from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import SupportsLocalFiles, SupportsSignedUrls
from nixery_core.storage.keys import blob_key


class Pull:
    """The two endpoints that images are pulled from.

    Args:
        backend: Where blobs are.
        manifests: Where manifests come from.
        memory: What is remembered of them.
        threads: For calls that wait for the storage.
        binding: Which digests belong to which names.
        redirect_expires: How long a signed URL is good, seconds; 0 for no redirects at all.
        on_served: Called with the image ID of each manifest that is sent.
    """

    def __init__(
        self,
        backend: Backend,
        manifests: Manifests,
        memory: ManifestMemory,
        threads: Threads,
        binding: Binding,
        *,
        redirect_expires: int,
        on_served: Callable[[Digest], object] | None = None,
    ) -> None:
        self._backend = backend
        self._manifests = manifests
        self._memory = memory
        self._threads = threads
        self._binding = binding
        self._signer = backend if redirect_expires and isinstance(backend, SupportsSignedUrls) else None
        self._files = backend if isinstance(backend, SupportsLocalFiles) else None
        self._redirect_expires = redirect_expires
        self._on_served = on_served

    async def manifest(self, scope: Scope, receive: Receive, send: Send, target: Target, allowed: Allowed) -> None:
        """Answer GET and HEAD of a manifest."""
        if target.digest is not None:
            digest = str(target.digest)
            if allowed.bind and not await self._binding.holds(target.name, digest):
                raise manifest_unknown(f"there is no manifest {digest} in {target.name}")
            manifest = await self._manifests.of_digest(digest)
        else:
            accept = header_lines(scope, b"accept")
            client = Client(receive)
            try:
                manifest = await self._manifests.of_tag(target.name, target.tag, accept, client)
            finally:
                await client.close()
            if allowed.bind:
                self._binding.note(target.name, (manifest.digest, *manifest.blobs, *manifest.children))
        head = scope["method"] == "HEAD"
        if is_unchanged(header(scope, b"if-none-match"), manifest.etag):
            kept = [pair for pair in manifest.headers if pair[0] in (b"etag", b"docker-content-digest")]
            await reply(send, 304, kept, head=True)
            return
        await reply(send, 200, manifest.headers, manifest.body, head=head)
        if self._on_served is not None and manifest.config is not None and not head and INTERNAL not in scope:
            self._on_served(manifest.config)

    async def blob(self, scope: Scope, send: Send, target: Target, allowed: Allowed) -> None:
        """Answer GET and HEAD of a blob, whole or in part."""
        assert target.digest is not None
        digest, key = str(target.digest), blob_key(target.digest)
        if allowed.bind and not await self._binding.holds(target.name, digest):
            raise blob_unknown(digest)
        info = await self._threads.run(self._backend.stat, key)
        if info is None:
            raise self._gone(digest)
        etag = f'"{digest}"'
        common = [("docker-content-digest", digest), ("etag", etag), ("accept-ranges", "bytes")]
        if is_unchanged(header(scope, b"if-none-match"), etag):
            await reply(send, 304, raw_headers(common), head=True)
            return
        if scope["method"] == "HEAD":
            await reply(send, 200, _headers(common, Part(0, info.size, info.size)), head=True)
            return
        if self._signer is not None:
            url = await self._threads.run(self._signer.signed_url, key, method="GET", expires=self._redirect_expires)
            if url is not None:
                await _redirect(send, digest, url)
                return
        part = wanted_part(header(scope, b"range"), header(scope, b"if-range"), etag, info.size)
        whole = Part(0, info.size, info.size)
        status, headers = (200, _headers(common, whole)) if part is None else (206, _headers(common, part))
        await self._send(scope, send, target.digest, part or whole, status, headers)

    async def _send(
        self, scope: Scope, send: Send, digest: Digest, part: Part, status: int, headers: RawHeaders
    ) -> None:
        key = blob_key(digest)
        path = None if self._files is None else await self._threads.run(self._files.local_file, key)
        if path is not None and await send_file(scope, send, self._threads, path, part, status, headers):
            return
        try:
            await send_stream(send, self._threads, self._backend, key, part, status, headers)
        except ObjectNotFound:
            raise self._gone(str(digest)) from None

    def _gone(self, digest: str) -> Refusal:
        # an image that names it is not whole any more: the next request for it has to build it again
        self._memory.forget_blob(digest)
        return blob_unknown(digest)


def _headers(common: list[tuple[str, str]], part: Part) -> RawHeaders:
    headers = [("content-type", "application/octet-stream"), ("content-length", str(part.length)), *common]
    if part.length != part.size:
        headers.append(("content-range", part.content_range()))
    # a blob never changes: who keeps it need not ask again
    return raw_headers([*headers, ("cache-control", "private, max-age=31536000, immutable")])


async def _redirect(send: Send, digest: str, url: str) -> None:
    headers = [
        ("location", url),
        ("docker-content-digest", digest),
        ("content-length", "0"),
        # the URL is a secret, and ends
        ("cache-control", "no-store"),
    ]
    await reply(send, 307, raw_headers(headers))

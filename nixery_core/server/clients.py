"""One client while its request is answered: whether it is still there, and how long it waits."""

from __future__ import annotations

import asyncio
import contextlib

from nixery_core.errors import ClientGone, QueueFull
from nixery_core.image import Image
from nixery_core.model.image import ImageSpec
from nixery_core.server.builds import Build, Builds
from nixery_core.server.refusals import come_again
from nixery_core.server.replies import Receive
from nixery_core.sources import Pin


class Client:
    """Notices when a client leaves.  Close it in the end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone: asyncio.Task[None] | None = None

    def gone(self) -> asyncio.Task[None]:
        """Return a task that ends when the client leaves."""
        if self._gone is None:
            self._gone = asyncio.create_task(self._wait())
        return self._gone

    async def close(self) -> None:
        """Look no longer."""
        if self._gone is not None:
            self._gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._gone

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            # a server waits in receive; one that does not must not hold the loop
            await asyncio.sleep(0)


class Patience:
    """Waits for builds on behalf of clients.

    Args:
        builds: What runs them.
        patience: How long a request waits before the client is told to ask again, seconds.
        retry_after: When it is told to, seconds.
        abandon_after: How long a build goes on that nobody has asked for, seconds; None for ever.
    """

    def __init__(self, builds: Builds, *, patience: float, retry_after: int, abandon_after: float | None) -> None:
        self._builds = builds
        self._patience = patience
        self._retry_after = retry_after
        self._abandon_after = abandon_after

    async def image(self, spec: ImageSpec, pin: Pin, client: Client, *, publish: bool = True) -> Image:
        """Return the image when it is built; raises Refusal, ClientGone and the errors of the build."""
        try:
            build = self._builds.join(spec, pin, publish=publish)
        except QueueFull as error:
            raise come_again(str(error), self._retry_after) from None
        try:
            await self._over(build, client)
        finally:
            self._leave(build)
        if build.error is not None:
            raise build.error
        assert build.image is not None
        return build.image

    async def _over(self, build: Build, client: Client) -> None:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not over.done():
                over.set_result(None)

        def wake() -> None:
            # the loop may have ended before the build
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell)

        self._builds.when_over(build, wake)
        gone = client.gone()
        await asyncio.wait({over, gone}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            return
        if gone.done():
            raise ClientGone("the client has closed its connection")
        raise come_again(f"{build.spec.name}:{build.spec.tag} is being built; ask again", self._retry_after)

    def _leave(self, build: Build) -> None:
        if self._builds.leave(build) and self._abandon_after is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._abandon_after, self._builds.cancel_deserted, build, build.joined)

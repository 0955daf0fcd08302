"""The registry as a Starlette application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InvalidConfig
from nixery_core.model.digest import Digest
from nixery_core.model.platform import Platform
from nixery_core.server.access import Authorise
from nixery_core.server.binding import Binding
from nixery_core.server.builds import BuildObserver, Builds, ignore_builds
from nixery_core.server.clients import Patience
from nixery_core.server.leases import DEFAULT_TTL, Leases
from nixery_core.server.listing import Listing
from nixery_core.server.manifests import Manifests
from nixery_core.server.memory import ManifestMemory
from nixery_core.server.pull import Pull
from nixery_core.server.registry import Registry
from nixery_core.server.replies import Receive, Scope, Send
from nixery_core.server.settings import SpecFactory, parse_spec
from nixery_core.server.threads import Threads


def registry_app(
    builder: ImageBuilder,
    *,
    parse: SpecFactory = parse_spec,
    platforms: Sequence[Platform] = (),
    authorise: Authorise | None = None,
    max_concurrent_builds: int = 2,
    max_queued_builds: int = 64,
    patience: float = 25.0,
    retry_after: int = 10,
    abandon_after: float | None = 600.0,
    remember_failures: float = 10.0,
    tag_ttl: float = 5.0,
    lease_ttl: float | None = DEFAULT_TTL,
    redirect_expires: int = 3600,
    max_lookups: int = 32,
    memory_bytes: int = 64 << 20,
    on_build: BuildObserver = ignore_builds,
    on_served: Callable[[Digest], object] | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """Return a registry whose images are built when they are asked for, as an ASGI application.

    Mount it at the root of a host: clients ask for ``/v2/``, and for nothing before it.  It starts
    no thread before the first request and needs no lifespan; where the server runs one (a mounted
    application has none), running builds are cancelled at its end.  ``app.state.builds`` are the
    :class:`~nixery_core.server.builds.Builds`.

    Args:
        builder: What builds images, and where they are kept; it stays the caller's.
        parse: Makes of a name and a tag what is built.
        platforms: With some, a name that says no platform is an index of these; with none it is one image.
        authorise: Who may do what; None lets everyone pull.
        max_concurrent_builds: Most builds at once in this process.
        max_queued_builds: Most builds that wait for their turn; beyond, clients get 429.
        patience: How long a request waits for a build, seconds; then the client gets 429, and the
            build goes on.  containerd gives up after 30.
        retry_after: After how many seconds clients shall ask again.
        abandon_after: How long a build goes on after the last request for it, seconds; None to its end.
        remember_failures: How long packages that cannot be had are not looked up again, seconds.
        tag_ttl: How long a tag is believed without asking source and storage, seconds; it comes on
            top of the *ttl* of the source.
        lease_ttl: How long another registry on the same storage may be silent before its build is
            taken over, seconds; the same for all of them.  None if no other one uses the storage.
        redirect_expires: How long the URL is good to which clients are sent for a blob where the
            storage can sign one, seconds; 0 to serve every blob from here.
        max_lookups: Most calls at once that wait for source or storage.
        memory_bytes: Most bytes of manifests that are kept in memory.
        on_build: Follows every build; called from its thread.
        on_served: Called with the image ID, the digest of the configuration, of every image manifest that
            is sent; it must not wait.  ``ServedCounter(backend).record`` counts them.
        routes: Other routes of the application; they go before those of the registry.

    Raises:
        InvalidConfig: For a number that makes no sense.
    """
    for name, value in (("patience", patience), ("retry_after", retry_after), ("max_lookups", max_lookups)):
        if value <= 0:
            raise InvalidConfig(f"{name} is a number above 0, not {value}")
    builds = Builds(
        builder,
        concurrent=max_concurrent_builds,
        queued=max_queued_builds,
        leases=None if lease_ttl is None else Leases(builder.backend, ttl=lease_ttl),
        remember_failures=remember_failures,
        observer=on_build,
    )
    threads = Threads(max_lookups)
    memory = ManifestMemory(tag_ttl=tag_ttl, max_bytes=memory_bytes)
    binding = Binding(builder.backend, threads)
    waiting = Patience(builds, patience=patience, retry_after=retry_after, abandon_after=abandon_after)
    manifests = Manifests(builder, waiting, memory, threads, parse=parse, platforms=platforms)
    registry = Registry(
        Pull(
            builder.backend, manifests, memory, threads, binding, redirect_expires=redirect_expires, on_served=on_served
        ),
        Listing(builder.backend, threads, binding),
        authorise,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await threads.run(builds.close)

    app = Starlette(routes=[*routes, Route("/{path:path}", registry)], lifespan=lifespan)
    app.state.builds = builds
    unmatched = app.router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        # a path with a line break in it matches no route of Starlette's, and gets an answer of ours all the same
        await (registry if scope["type"] == "http" else unmatched)(scope, receive, send)

    app.router.default = default
    return app

"""Builds that clients wait for: one of a kind at a time, few at once, a queue with an end.

Plain threads and locks, so that it does not matter which event loop waits.  A thread exists only
while there is something to build.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum

import attrs

from nixery_core._fields import hash_fields
from nixery_core.builder import ImageBuilder
from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled, InvalidConfig, PackageError, QueueFull
from nixery_core.events import BuildEvent
from nixery_core.image import Image
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import canonical_json
from nixery_core.server.leases import Leases
from nixery_core.sources import Pin

_log = logging.getLogger(__name__)

_LOOK_FIRST, _LOOK_MOST = 0.1, 2.0
"""How often somebody else's build is looked at, seconds."""


class BuildState(Enum):
    """Where a build stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@attrs.define(eq=False)
class Build:
    """One build and what is known of it; changed by :class:`Builds` alone."""

    number: int
    """Counts up; names the build within this process."""
    spec: ImageSpec
    pin: Pin
    publish: bool
    """Whether the name comes to stand for the image."""
    state: BuildState = BuildState.QUEUED
    queued: float = attrs.field(factory=time.time)
    """When it was asked for, seconds since the epoch; so are the others."""
    started: float | None = None
    finished: float | None = None
    waiting: int = 0
    """How many requests wait for it now."""
    joined: int = 0
    """How many requests ever waited for it."""
    image: Image | None = None
    error: BaseException | None = None
    cancellation: Cancellation = attrs.field(factory=Cancellation, repr=False)
    _announced: threading.Event = attrs.field(factory=threading.Event, init=False, repr=False)
    """Set when the observer knows of the build."""
    _callbacks: list[Callable[[], None]] = attrs.field(factory=list, init=False, repr=False)

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state not in (BuildState.QUEUED, BuildState.RUNNING)


BuildObserver = Callable[[Build, BuildEvent | None], None]
"""Told of each event of a build, and with None whenever its state has changed.

Called from the thread of the build, and first of all, when the build is asked for, from the one that
asks.  It has to be quick.
"""


def ignore_builds(build: Build, event: BuildEvent | None) -> None:
    """Do nothing: the default observer."""


class Builds:
    """Runs builds in threads of its own.

    Args:
        builder: What builds.
        concurrent: Most builds at once.
        queued: Most builds that wait for their turn; more are refused.
        leases: What keeps other registries of one storage from the same build; None for a storage
            that this process has for itself.
        remember_failures: How long an image whose packages cannot be had is not tried again, seconds.
        recent: How many builds that are over are remembered.
        observer: Follows every build.

    Raises:
        InvalidConfig: For a number that makes no sense.
    """

    def __init__(
        self,
        builder: ImageBuilder,
        *,
        concurrent: int = 2,
        queued: int = 64,
        leases: Leases | None = None,
        remember_failures: float = 10.0,
        recent: int = 50,
        observer: BuildObserver = ignore_builds,
    ) -> None:
        if concurrent < 1 or queued < 0:
            raise InvalidConfig(
                f"{concurrent} builds at once and {queued} in the queue", hint="use 1 or more, 0 or more"
            )
        self._builder = builder
        self._concurrent = concurrent
        self._queued = queued
        self._leases = leases
        self._remember_failures = remember_failures
        self._observer = observer
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._active: dict[str, Build] = {}
        self._queue: deque[tuple[str, Build]] = deque()
        self._threads: set[threading.Thread] = set()
        self._failed: OrderedDict[str, tuple[float, Build]] = OrderedDict()
        self._recent: deque[Build] = deque(maxlen=recent)
        self._closed = False
        # a program that ends takes its builds along; what they have built of layers stays
        self._at_exit = weakref.finalize(self, _cancel_all, self._active, self._lock)

    def join(self, spec: ImageSpec, pin: Pin, *, publish: bool = True) -> Build:
        """Wait for a build from now on, and start it if nobody else did; call :meth:`leave` in the end.

        Raises QueueFull.
        """
        key = build_key(spec, pin, publish=publish)
        with self._lock:
            known = self._active.get(key) or self._remembered(key)
            build = known or self._start(key, spec, pin, publish=publish)
            build.waiting += 1
            build.joined += 1
        if known is None:
            try:
                self._tell(build)
            finally:
                build._announced.set()
        return build

    def leave(self, build: Build) -> bool:
        """Wait no longer; return whether a build that is not over is now waited for by nobody."""
        with self._lock:
            build.waiting -= 1
            return build.waiting == 0 and not build.over

    def when_over(self, build: Build, callback: Callable[[], None]) -> None:
        """Call *callback* once when the build is over, from its thread; at once where it is already."""
        with self._lock:
            if not build.over:
                build._callbacks.append(callback)
                return
        callback()

    def cancel_deserted(self, build: Build, joined: int) -> None:
        """Cancel a build that nobody waits for, if nobody has asked for it since it had *joined* requests."""
        with self._lock:
            deserted = build.waiting == 0 and build.joined == joined and not build.over
        if deserted:
            build.cancellation.cancel("no one waits for it any more")

    def active(self) -> list[Build]:
        """Return the builds that run or wait, the oldest first."""
        with self._lock:
            return list(self._active.values())

    def recent(self) -> list[Build]:
        """Return builds that are over, the latest first."""
        with self._lock:
            return list(reversed(self._recent))

    def close(self, timeout: float | None = 0.0) -> None:
        """Take no more builds, let those that run go on for *timeout* seconds, then cancel them.

        Returns when no thread is left.  None lets them finish.
        """
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        _cancel_all(self._active, self._lock)
        for thread in threads:
            thread.join()

    def _remembered(self, key: str) -> Build | None:
        known = self._failed.get(key)
        if known is None:
            return None
        if time.monotonic() - known[0] < self._remember_failures:
            return known[1]
        del self._failed[key]
        return None

    def _start(self, key: str, spec: ImageSpec, pin: Pin, *, publish: bool) -> Build:
        if self._closed:
            raise QueueFull("the registry is about to stop", hint="ask again in a moment")
        if len(self._active) >= self._concurrent + self._queued:
            raise QueueFull(f"{len(self._active)} builds run or wait already", hint="ask again in a moment")
        build = Build(next(self._numbers), spec, pin, publish)
        self._active[key] = build
        self._queue.append((key, build))
        if len(self._threads) < self._concurrent:
            # a daemon: the end of the program cancels it, rather than waiting for it
            thread = threading.Thread(target=self._work, name="nixery-core-build", daemon=True)
            self._threads.add(thread)
            thread.start()
        return build

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                key, build = self._queue.popleft()
            # an observer learns of a build before it learns that it runs
            build._announced.wait()
            with self._lock:
                build.state, build.started = BuildState.RUNNING, time.time()
            image: Image | None = None
            failure: BaseException | None = None
            try:
                self._observer(build, None)
                image = self._build(build)
            except BaseException as error:  # noqa: BLE001 (whoever waits gets it)
                failure = error
            self._finish(key, build, image, failure)

    def _finish(self, key: str, build: Build, image: Image | None, failure: BaseException | None) -> None:
        with self._lock:
            build.image, build.error, build.finished = image, failure, time.time()
            build.state = (
                BuildState.DONE
                if failure is None
                else BuildState.CANCELLED
                if isinstance(failure, Cancelled)
                else BuildState.FAILED
            )
            del self._active[key]
            self._recent.append(build)
            if isinstance(failure, PackageError) and build.pin.revision is not None:
                # it would be asked for again at once: docker sends HEAD, then GET
                self._failed[key] = (time.monotonic(), build)
                while len(self._failed) > 1000:
                    self._failed.popitem(last=False)
            callbacks, build._callbacks = build._callbacks, []
        for callback in callbacks:
            callback()
        self._tell(build)

    def _tell(self, build: Build) -> None:
        try:
            self._observer(build, None)
        except Exception:  # noqa: BLE001 (logged; the thread has other builds to do)
            _log.exception("the observer of builds failed")

    def _build(self, build: Build) -> Image:
        def on_event(event: BuildEvent) -> None:
            self._observer(build, event)

        def finished() -> Image:
            return self._builder.build(
                build.spec, pin=build.pin, publish=build.publish, on_event=on_event, cancellation=build.cancellation
            )

        build.cancellation.check()
        key = self._builder.cache_key(build.spec, build.pin)
        if key is None or self._leases is None:
            return finished()
        watch, pause = self._leases.watch(key.value), _LOOK_FIRST
        while True:
            lease = watch.acquire()
            if lease is not None:
                with lease:
                    # looks into the cache first: the last holder may have been done
                    return finished()
            build.cancellation.wait(pause)
            build.cancellation.check()
            pause = min(pause * 1.5, _LOOK_MOST)
            image = self._builder.find(build.spec, pin=build.pin, publish=build.publish, on_event=on_event)
            if image is not None:
                return image


def build_key(spec: ImageSpec, pin: Pin, *, publish: bool) -> str:
    """Return what makes two builds different."""
    return hash_fields(
        "build",
        [canonical_json(spec.identity()), spec.name, spec.tag, pin.kind, pin.url, pin.revision or "", str(publish)],
    )


def _cancel_all(active: dict[str, Build], lock: threading.Lock) -> None:
    with lock:
        builds = list(active.values())
    for build in builds:
        build.cancellation.cancel("the registry stops")

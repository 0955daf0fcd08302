"""Plans of images that somebody wants to see before they are pulled.

A plan needs sizes, and only what exists has one: to plan is to build what is missing, without
writing layers.  So plans wait for their turn like builds, few at once, and are remembered.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable

import attrs

from nixery_core.builder import ImageBuilder
from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidConfig, QueueFull
from nixery_core.image import ImagePlan
from nixery_core.model.image import ImageSpec
from nixery_core.server.page.progress import Progress

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class PlannedPart:
    """One layer of a plan."""

    label: str
    """The largest package in it."""
    packages: tuple[str, ...]
    """All of them, the largest first."""
    reason: str
    nar_size: int
    size: int | None
    """Size of the blob, or None where the layer is not stored yet."""


@attrs.frozen(kw_only=True)
class PlanSummary:
    """What is kept of a plan."""

    revision: str | None
    attributes: tuple[str, ...]
    """The packages that the names stand for."""
    paths: int
    nar_size: int
    parts: tuple[PlannedPart, ...]
    """In the order of the manifest."""


@attrs.define(eq=False)
class Plan:
    """A plan that was asked for; changed by :class:`Plans` alone."""

    spec: ImageSpec
    progress: Progress = attrs.field(factory=Progress)
    running: bool = False
    over: float | None = None
    """When it was over, by the clock of the plans; None before."""
    summary: PlanSummary | None = None
    error: BaseException | None = None
    cancellation: Cancellation = attrs.field(factory=Cancellation, repr=False)


class Plans:
    """Plans images in threads of its own, which exist only while there is something to plan.

    Args:
        builder: What plans.
        concurrent: Most plans at once.
        queued: Most plans that wait for their turn.
        kept: How many plans that are over are remembered.
        believed: How long, seconds: what a tag stands for may change.
        clock: Seconds that only grow.

    Raises:
        InvalidConfig: For a number that makes no sense.
    """

    def __init__(
        self,
        builder: ImageBuilder,
        *,
        concurrent: int = 1,
        queued: int = 8,
        kept: int = 64,
        believed: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if concurrent < 1 or queued < 0:
            raise InvalidConfig(
                f"{concurrent} plans at once and {queued} in the queue", hint="use 1 or more, 0 or more"
            )
        self._builder = builder
        self._concurrent = concurrent
        self._queued = queued
        self._kept = kept
        self._believed = believed
        self._clock = clock
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[str, str], Plan] = OrderedDict()
        self._queue: deque[Plan] = deque()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        # a program that ends does not wait for pictures
        weakref.finalize(self, _cancel, self._plans)

    def ask(self, spec: ImageSpec) -> Plan:
        """Return the plan of an image: one that is known or on its way, else a new one; raises QueueFull."""
        with self._lock:
            plan = self._find(spec.name, spec.tag)
            if plan is not None and plan.error is None:
                return plan
            if self._closed:
                raise QueueFull("the registry is about to stop", hint="ask again in a moment")
            if len(self._threads) >= self._concurrent and len(self._queue) >= self._queued:
                raise QueueFull(f"{len(self._queue)} plans wait already", hint="ask again in a moment")
            plan = self._plans[spec.name, spec.tag] = Plan(spec)
            self._plans.move_to_end((spec.name, spec.tag))
            self._queue.append(plan)
            self._forget()
            if len(self._threads) < self._concurrent:
                thread = threading.Thread(target=self._work, name="nixery-core-plan", daemon=True)
                self._threads.add(thread)
                thread.start()
            return plan

    def find(self, name: str, tag: str) -> Plan | None:
        """Return the plan of an image if it was asked for not long ago."""
        with self._lock:
            return self._find(name, tag)

    def close(self) -> None:
        """Take no more plans and cancel all; returns when no thread is left."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            self._queue.clear()
        _cancel(self._plans)
        for thread in threads:
            thread.join()

    def _find(self, name: str, tag: str) -> Plan | None:
        plan = self._plans.get((name, tag))
        if plan is not None and plan.over is not None and self._clock() - plan.over >= self._believed:
            del self._plans[name, tag]
            return None
        return plan

    def _forget(self) -> None:
        over = [key for key, plan in self._plans.items() if plan.over is not None]
        for key in over[: max(len(over) - self._kept, 0)]:
            del self._plans[key]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                plan = self._queue.popleft()
                plan.running = True
            try:
                found = self._builder.plan(plan.spec, on_event=plan.progress.follow, cancellation=plan.cancellation)
                plan.summary = summary_of(found)
            except BaseException as error:  # noqa: BLE001 (whoever asked sees it)
                plan.error = error
            with self._lock:
                plan.over = self._clock()


def summary_of(plan: ImagePlan) -> PlanSummary:
    """Return what is shown of a plan."""
    parts = []
    for layer in plan.layers:
        by_size = sorted(layer.plan.paths, key=lambda path: (-plan.closure[path].nar_size, str(path)))
        parts.append(
            PlannedPart(
                label=by_size[0].name,
                packages=tuple(path.name for path in by_size),
                reason=layer.plan.reason,
                nar_size=layer.plan.nar_size,
                size=layer.built.descriptor.size if layer.built else None,
            )
        )
    return PlanSummary(
        revision=plan.revision,
        attributes=tuple(package.attribute for package in plan.packages),
        paths=len(plan.closure),
        nar_size=plan.closure.nar_size,
        parts=tuple(parts),
    )


def _cancel(plans: OrderedDict[tuple[str, str], Plan]) -> None:
    for plan in list(plans.values()):
        plan.cancellation.cancel("the registry stops")

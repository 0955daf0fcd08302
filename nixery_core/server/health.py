"""Whether a registry is alive, and whether it can do its work: for load balancers and Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import attrs

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InputError, NixeryError, RevisionNotFound
from nixery_core.model.oci import canonical_json
from nixery_core.server.replies import JSON, Receive, Scope, Send, raw_headers, reply
from nixery_core.server.threads import Threads
from nixery_core.sources import DEFAULT_TAG
from nixery_core.storage.keys import OCI_LAYOUT_KEY

_log = logging.getLogger(__name__)


@attrs.frozen
class Readiness:
    """What was found out of a registry's surroundings."""

    storage: bool
    """Whether the storage answers."""
    source: bool
    """Whether the package source can be resolved."""

    @property
    def ready(self) -> bool:
        """Whether images can be built and served."""
        return self.storage and self.source

    def body(self) -> bytes:
        """Return the JSON document; reasons are in the log, for they may name buckets and paths."""
        checks = {"storage": self.storage, "source": self.source}
        return canonical_json(
            {
                "status": "ready" if self.ready else "not ready",
                "checks": {name: "ok" if good else "failed" for name, good in checks.items()},
            }
        )


class Health:
    """Answers ``/healthz`` and ``/readyz``.

    Args:
        builder: Whose source and storage are looked at.
        believed: How long an answer is believed, seconds: however often it is asked for, source and
            storage are looked at this often.
        timeout: How long source and storage may take, seconds.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        builder: ImageBuilder,
        *,
        believed: float = 5.0,
        timeout: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._builder = builder
        self._believed = believed
        self._timeout = timeout
        self._clock = clock
        self._known: tuple[float, Readiness] | None = None
        # threads of its own: a storage that hangs must not stop the answer that it hangs
        self._threads = Threads(2)
        self._asked: dict[str, asyncio.Task[bool]] = {}

    async def alive(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer ``/healthz``: 200 as long as requests are answered at all."""
        await _json(scope, send, 200, canonical_json({"status": "ok"}))

    async def ready(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer ``/readyz``: 200 where storage and source answer, else 503."""
        readiness = await self.look()
        await _json(scope, send, 200 if readiness.ready else 503, readiness.body())

    async def look(self) -> Readiness:
        """Return how things are, looked at no longer ago than is believed."""
        if self._known is not None and self._clock() - self._known[0] < self._believed:
            return self._known[1]
        storage, source = await asyncio.gather(
            self._check("storage", self._storage), self._check("source", self._source)
        )
        readiness = Readiness(storage, source)
        if self._known is not None and self._known[1] != readiness:
            _log.warning("the registry is %s", "ready" if readiness.ready else "not ready")
        self._known = (self._clock(), readiness)
        return readiness

    async def _check(self, what: str, look: Callable[[], object]) -> bool:
        # one that hangs is waited for again, not asked again: a probe each second must not fill threads
        task = self._asked.get(what)
        if task is None:
            task = self._asked[what] = asyncio.create_task(self._run(what, look))
            task.add_done_callback(lambda _: self._asked.pop(what, None))
        done, _ = await asyncio.wait({task}, timeout=self._timeout)
        if not done:
            _log.warning("the %s takes longer than %s s to answer", what, self._timeout)
            return False
        return task.result()

    async def _run(self, what: str, look: Callable[[], object]) -> bool:
        try:
            await self._threads.run(look)
        except NixeryError as error:
            _log.warning("the %s does not answer: %s", what, error)
            return False
        return True

    def _storage(self) -> None:
        self._builder.backend.stat(OCI_LAYOUT_KEY)

    def _source(self) -> None:
        try:
            self._builder.source.pin(DEFAULT_TAG)
        except (RevisionNotFound, InputError):
            # it has answered: there is no such tag, and clients are told so
            return


async def _json(scope: Scope, send: Send, status: int, body: bytes) -> None:
    headers = [("content-type", JSON), ("content-length", str(len(body))), ("cache-control", "no-store")]
    await reply(send, status, raw_headers(headers), body, head=scope["method"] == "HEAD")

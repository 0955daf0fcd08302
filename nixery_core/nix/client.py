"""How to call Nix: the one class of this package that others use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import attrs

from nixery_core._nixfiles import expressions_hash
from nixery_core._unattended import unattended_environment
from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidConfig, NixError, NixNotFound, NixTimeout
from nixery_core.events import EventCallback, ignore_events
from nixery_core.index.entry import IndexEntry
from nixery_core.model.names import check_attribute
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import STORE_DIR
from nixery_core.nix._evaluation import Evaluator
from nixery_core.nix._indexing import Indexer
from nixery_core.nix._log import NixLog
from nixery_core.nix._process import Deadline, Finished, run
from nixery_core.nix._realisation import Realiser
from nixery_core.sources import Pin
from nixery_core.stores.realiser import Realisation

_LOCAL_STORES = ("", "auto", "daemon", "local")
_VERSION_TIMEOUT = 60.0
DEFAULT_BATCH = 1000
"""Attributes for one evaluation of an index."""


def _texts(value: Mapping[str, str]) -> dict[str, str]:
    if not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise InvalidConfig("options and environment map texts to texts", hint='write {"max-jobs": "2"}')
    return dict(value)


def _seconds(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise InvalidConfig(f"a time limit is a number of seconds above 0, or None, not {value}")
    return value


def _store(value: str | Path | None) -> str | None:
    if value is None:
        return None
    text = str(value)
    return os.path.realpath(text) if isinstance(value, Path) or text.startswith(("/", ".")) else text


@attrs.frozen(kw_only=True)
class Nix:
    """The Nix of this machine, as the way from names to store paths.

    Holds no process and no handle: it is compared, pickled and shared between threads freely.
    It needs no channel, no flakes, no network and no root: an ordinary user names a folder of
    their own as *store*.

    >>> Nix(timeout=-1)
    Traceback (most recent call last):
    nixery_core.errors.InvalidConfig: a time limit is a number of seconds above 0, or None, not -1
    """

    store: str | None = attrs.field(default=None, converter=_store)
    """What ``--store`` takes: a folder for a store of its own, or a URL; by default what Nix is configured for."""
    options: Mapping[str, str] = attrs.field(factory=dict, converter=_texts)
    """Settings of nix.conf: ``{"substituters": ""}``."""
    environment: Mapping[str, str] = attrs.field(factory=dict, converter=_texts, repr=False)
    """Added to the environment of Nix."""
    timeout: float | None = attrs.field(default=3600.0, converter=_seconds)
    """Longest time for one call of evaluate or realise, seconds."""
    max_silent: float | None = attrs.field(default=None, converter=_seconds)
    """Longest time without a word of a builder, or of Nix itself while it realises, seconds."""
    binaries: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The folder of ``nix``, ``nix-instantiate`` and ``nix-store``; by default they are looked for in PATH."""

    @property
    def id(self) -> str:
        """Names the expressions that look up names; enters the cache key of images."""
        return f"nix {expressions_hash()}"

    def version(self) -> str:
        """Return the version of Nix: ``2.8.0``; raises NixNotFound where there is none."""
        log = NixLog(ignore_events)
        finished = self._run_plain(["--version"], log)
        match = re.search(rb"\) (\S+)", finished.stdout)
        if finished.returncode != 0 or match is None:
            raise NixNotFound(f"{self._program('nix')} is not Nix: {' '.join(log.tail()) or 'it names no version'}")
        return match.group(1).decode(errors="replace")

    def evaluate(
        self,
        pin: Pin,
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[ResolvedPackage, ...]:
        """Look up names in a package set; nothing is built but what the set itself builds to evaluate.

        Args:
            pin: The package set.
            packages: Attribute paths; other case and a left-out leading ``_`` before a digit are forgiven
                where that is unambiguous.
            optional: More of them, left out with an event where they cannot be used.
            platform: What the packages are for.
            on_event: Gets PackageSkipped, and what Nix says while it fetches the set.
            cancellation: Ends the call early.

        Returns:
            One package for each attribute, sorted by attribute.

        Raises:
            InvalidName: A name is no attribute path.
            PackageError: Packages cannot be used; all of them are listed.
            SourceError: The package set cannot be fetched; RevisionNotFound where its revision is missing.
            EvaluationError: The package set itself does not evaluate.
            NixTimeout: It took longer than the timeout.
            Cancelled: The call was cancelled.
        """
        evaluator = Evaluator(
            self._run, pin, platform, Deadline.after(self.timeout), on_event, cancellation or Cancellation()
        )
        return evaluator.evaluate(packages, optional)

    def index(
        self,
        pin: Pin,
        platform: Platform,
        *,
        batch: int = DEFAULT_BATCH,
        include: Sequence[str] = (),
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Iterator[tuple[str, IndexEntry]]:
        """Give every package of a package set with its attribute path, for a package index; nothing is built.

        Sets in the set are walked where they have ``recurseForDerivations``, as ``nix-env -qaP`` does.
        A package that throws, aborts or recurses without end is given with its problem.
        A set that has to build something to be evaluated is not followed there.

        Args:
            pin: The package set.
            platform: What the packages are for.
            batch: Most attributes for one call of Nix, whose memory grows with them.
            include: Attribute paths of more sets to walk.
            on_event: Gets IndexProgress after every call of Nix.
            cancellation: Ends the walk early.

        Raises:
            InvalidConfig: For a batch below 1.
            InvalidName: What is to be included is no attribute path.
            NixError, SourceError, Cancelled: As in :meth:`evaluate`; the timeout is for one call of Nix.
        """
        if batch < 1:
            raise InvalidConfig(f"a batch has at least 1 attribute, not {batch}")
        indexer = Indexer(
            call=self._run,
            pin=pin,
            platform=platform,
            batch=batch,
            include=tuple(map(check_attribute, include)),
            timeout=self.timeout,
            on_event=on_event,
            cancellation=cancellation or Cancellation(),
        )
        return indexer.packages()

    def realise(
        self,
        packages: Sequence[ResolvedPackage],
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> AbstractContextManager[Realisation]:
        """Build or substitute the outputs of *packages*, and hold them until the context ends.

        Meanwhile they are roots of the garbage collector.  Entering the context does the work.

        Raises:
            NixBuildError: A derivation failed, cannot be built here, or was collected since its evaluation.
            NixTimeout: It took longer than the timeout, or was silent for too long.
            NixError: The store cannot be read from this machine.
            Cancelled: The call was cancelled.
        """
        realiser = Realiser(
            self._run,
            self._store_dir(),
            self.max_silent,
            Deadline.after(self.timeout),
            on_event,
            cancellation or Cancellation(),
        )
        return realiser.realise(packages)

    def _run(
        self,
        tool: str,
        arguments: Sequence[str],
        *,
        log: NixLog,
        deadline: Deadline,
        cancellation: Cancellation,
        max_silent: float | None = None,
    ) -> Finished:
        settings = [] if self.store is None else ["--store", self.store]
        for name, value in self.options.items():
            settings += ["--option", name, value]
        try:
            return run(
                [self._program(tool), *arguments, *settings],
                self._environment(),
                on_line=log.feed,
                deadline=deadline,
                max_silent=max_silent,
                cancellation=cancellation,
            )
        except NixTimeout as error:
            running = log.running()
            error.log_tail = (log.build_tail(running[0]) if running else ()) or log.tail()
            if running:
                error.message += f", while it built {running[0]}"
            raise

    def _run_plain(self, arguments: Sequence[str], log: NixLog) -> Finished:
        return run(
            [self._program("nix"), *arguments],
            self._environment(),
            on_line=log.feed,
            deadline=Deadline.after(_VERSION_TIMEOUT),
            cancellation=Cancellation(),
        )

    def _program(self, tool: str) -> str:
        return tool if self.binaries is None else str(self.binaries / tool)

    def _environment(self) -> Mapping[str, str]:
        return unattended_environment(self.environment)

    def _store_dir(self) -> str:
        """Return the physical folder that holds the paths of the store; raises NixError for a store elsewhere."""
        store = self.store
        if store is None:
            store = self.environment.get("NIX_REMOTE", os.environ.get("NIX_REMOTE", ""))
        parts = urlsplit(store)
        query = parse_qs(parts.query)
        if "real" in query:
            return query["real"][0]
        if "root" in query:
            return query["root"][0].rstrip("/") + STORE_DIR
        if parts.scheme in ("", "local") and parts.path.startswith("/"):
            return parts.path.rstrip("/") + STORE_DIR
        if (parts.scheme == "" and parts.path in _LOCAL_STORES) or parts.scheme in ("unix", "daemon", "local"):
            return STORE_DIR
        raise NixError(
            f"the content of the Nix store {store} cannot be read from this machine",
            hint="name a local store, and that one as a substituter or remote builder",
        )

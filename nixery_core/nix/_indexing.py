"""Walk a whole package set, a batch of attributes for each evaluation, and describe every package in it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from nixery_core._nixfiles import nix_file
from nixery_core.cancellation import Cancellation
from nixery_core.errors import EvaluationError, InvalidStorePath, NixError, ProblemKind
from nixery_core.events import EventCallback, IndexProgress
from nixery_core.index.entry import IndexEntry
from nixery_core.model.package import package_priority
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.nix._answer import problem_kind
from nixery_core.nix._call import Call
from nixery_core.nix._evaluation import nix_source
from nixery_core.nix._load_errors import first_paragraph, load_error
from nixery_core.nix._log import NixLog
from nixery_core.nix._process import Deadline
from nixery_core.sources import Pin

# without --read-write-mode no derivation is written, which is most of the time for a large set
_EVALUATE = ("--eval", "--strict", "--json", "--log-format", "internal-json")
_STATUSES = {"ok", "names", "failed", "other"}
# Linux takes no argument of more than 128 KiB (execve(2), MAX_ARG_STRLEN)
_MAX_REQUEST = 120_000
MAX_DEPTH = 8
"""How many sets may stand in each other; a set that holds itself ends there."""

_Path = tuple[str, ...]


@attrs.frozen(kw_only=True)
class Indexer:
    """Describes the packages of one pinned source for one platform."""

    call: Call
    pin: Pin
    platform: Platform
    batch: int
    """Most attributes for one evaluation: what bounds its memory."""
    include: tuple[str, ...]
    """Attribute paths of sets to walk though they do not ask for it."""
    timeout: float | None
    """Longest time for one evaluation, seconds."""
    on_event: EventCallback
    cancellation: Cancellation

    def packages(self) -> Iterator[tuple[str, IndexEntry]]:
        """Give every package, in the order of the walk; raises what the interface of realisers lists."""
        waiting: deque[_Path] = deque([()])
        described = 0
        while waiting:
            paths = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
            for path, answer in zip(paths, self._describe(paths), strict=True):
                if isinstance(answer, IndexEntry):
                    described += 1
                    yield ".".join(path), answer
                elif len(path) < MAX_DEPTH:
                    waiting.extend((*path, name) for name in answer)
            self.on_event(IndexProgress(described=described, waiting=len(waiting)))

    def _describe(self, paths: Sequence[_Path]) -> list[IndexEntry | list[str]]:
        """Return for each path what is there: a package, or the names in a set that is to be walked."""
        request = self._request(paths)
        too_long = len(request) > _MAX_REQUEST and len(paths) > 1
        answer = "" if too_long else self._run(request, len(paths))
        if not isinstance(answer, str):
            return [self._read(entry) for entry in answer]
        if len(paths) > 1:
            # what cannot be caught inside Nix has to be found from outside
            half = len(paths) // 2
            return self._describe(paths[:half]) + self._describe(paths[half:])
        return [IndexEntry(problem=problem_kind(answer, []), reason=answer)]

    def _read(self, entry: Mapping[str, Any]) -> IndexEntry | list[str]:
        match entry["status"]:
            case "names":
                return [str(name) for name in entry["names"]]
            case "other":
                return []
            case "failed":
                return IndexEntry(problem=problem_kind("", list(entry["kinds"])))
        version = str(entry["version"])
        try:
            outputs = {str(out["name"]): StorePath.parse(out["path"]) for out in entry["outputs"]}
        except InvalidStorePath as error:
            # a placeholder stands for the output of a content-addressed derivation
            reason = f"its store path is not known before it is built: {error.message}"
            return IndexEntry(problem=ProblemKind.FAILED, reason=reason, version=version)
        install = tuple(map(str, entry["install"]))
        if not install:
            reason = "its meta.outputsToInstall is empty"
            return IndexEntry(problem=ProblemKind.NOT_A_PACKAGE, reason=reason, version=version)
        priority = package_priority(entry["priority"])
        return IndexEntry(outputs=outputs, install=install, version=version, priority=priority)

    def _request(self, paths: Sequence[_Path]) -> str:
        request = {
            "source": nix_source(self.pin),
            "revision": self.pin.revision,
            "system": self.platform.system,
            "importArgs": dict(self.pin.import_args),
            "paths": paths,
            "include": self.include,
        }
        return json.dumps(request)

    def _run(self, request: str, count: int) -> list[Mapping[str, Any]] | str:
        """Return the answer of one evaluation, or the reason why it ended without one."""
        log = NixLog(self.on_event)
        finished = self.call(
            "nix-instantiate",
            [*_EVALUATE, str(nix_file("index.nix")), "--argstr", "request", request],
            log=log,
            deadline=Deadline.after(self.timeout),
            cancellation=self.cancellation,
        )
        if finished.returncode == 0:
            return _read_answer(finished.stdout, count)
        if "loaded" not in log.stages:
            raise load_error(self.pin, log, finished.returncode)
        return first_paragraph(log, finished.returncode)


def _read_answer(stdout: bytes, count: int) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(stdout)
    except (ValueError, RecursionError) as error:
        raise NixError(f"the answer of nix-instantiate is not JSON: {error}") from error
    if (
        not isinstance(entries, list)
        or len(entries) != count
        or not all(isinstance(entry, dict) and entry.get("status") in _STATUSES for entry in entries)
    ):
        raise EvaluationError("nix-instantiate gave an answer of an unknown form", hint="install nixery-core again")
    return entries

"""Look up names in a package set: one evaluation for all, and more only to explain what failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nixery_core._nixfiles import nix_file
from nixery_core.cancellation import Cancellation
from nixery_core.errors import EvaluationError, NixError
from nixery_core.events import EventCallback
from nixery_core.index.selection import Asked, select_packages
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.nix._answer import Looked, read_entry
from nixery_core.nix._call import Call
from nixery_core.nix._load_errors import first_paragraph, load_error
from nixery_core.nix._log import NixLog
from nixery_core.nix._process import Deadline
from nixery_core.sources import Pin

_EVALUATE = ("--eval", "--strict", "--json", "--read-write-mode", "--log-format", "internal-json")
_UNFREE_HINT = "allow them in the package source: import_args={'config': {'allowUnfree': True}}"
_MEMBERS = {"ok", "not-found", "ambiguous", "not-a-package", "not-a-set", "failed"}


class _Died(Exception):
    """Nix ended without an answer, though the package set itself was loaded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.frozen
class _Answer:
    entries: list[Mapping[str, Any]]
    known: Mapping[str, Any]


@attrs.frozen
class Evaluator:
    """Evaluates names of one pinned source for one platform."""

    call: Call
    pin: Pin
    platform: Platform
    deadline: Deadline
    on_event: EventCallback
    cancellation: Cancellation

    def evaluate(self, packages: Sequence[str], optional: Sequence[str]) -> tuple[ResolvedPackage, ...]:
        """Return one package for each attribute, sorted; raises what the interface of realisers lists."""
        asked = Asked.of(packages, optional)
        return select_packages(asked, self._look_up(asked.names), on_event=self.on_event, unfree_hint=_UNFREE_HINT)

    def _look_up(self, names: Sequence[str]) -> dict[str, Looked]:
        if not names:
            return {}
        try:
            answer = self._run(names)
        except _Died as died:
            if len(names) > 1:
                # what cannot be caught inside Nix has to be found from outside
                return {name: looked for each in names for name, looked in self._look_up([each]).items()}
            return {names[0]: self._explained(names[0], {"status": "failed", "kinds": []}, died.reason)}
        looked: dict[str, Looked] = {}
        for name, entry in zip(names, answer.entries, strict=True):
            if entry["status"] == "failed":
                looked[name] = self._explained(name, entry, self._reason(name))
            else:
                looked[name] = read_entry(name, entry, answer.known)
        return looked

    def _explained(self, name: str, entry: Mapping[str, Any], reason: str) -> Looked:
        return read_entry(name, {**entry, "reason": reason}, {})

    def _reason(self, name: str) -> str:
        """Ask again for one name, without catching, since only Nix's own error has the text."""
        try:
            self._run([name], explain=True)
        except _Died as died:
            return died.reason
        return ""

    def _run(self, names: Sequence[str], *, explain: bool = False) -> _Answer:
        request = {
            "source": nix_source(self.pin),
            "revision": self.pin.revision,
            "system": self.platform.system,
            "importArgs": dict(self.pin.import_args),
            "names": list(names),
            "explain": explain,
        }
        log = NixLog(self.on_event)
        finished = self.call(
            "nix-instantiate",
            [*_EVALUATE, str(nix_file("resolve.nix")), "--argstr", "request", json.dumps(request)],
            log=log,
            deadline=self.deadline,
            cancellation=self.cancellation,
        )
        if finished.returncode == 0:
            return _read_answer(finished.stdout, len(names))
        if "loaded" not in log.stages:
            raise load_error(self.pin, log, finished.returncode)
        raise _Died(first_paragraph(log, finished.returncode))


def nix_source(pin: Pin) -> dict[str, Any]:
    """Return the argument ``source`` of nix/load.nix."""
    source = dict(pin.fetch)
    if source.get("type") == "git" and str(source["url"]).startswith("/"):
        # Nix 2.8 makes a URL of a path, and no valid one where the path has a space
        source["url"] = Path(source["url"]).as_uri()
    return source


def _read_answer(stdout: bytes, count: int) -> _Answer:
    try:
        document = json.loads(stdout)
    except (ValueError, RecursionError) as error:
        raise NixError(f"the answer of nix-instantiate is not JSON: {error}") from error
    entries = document.get("results") if isinstance(document, dict) else None
    known = document.get("known") if isinstance(document, dict) else None
    if (
        not isinstance(entries, list)
        or len(entries) != count
        or not isinstance(known, dict)
        or not all(isinstance(entry, dict) and entry.get("status") in _MEMBERS for entry in entries)
    ):
        raise EvaluationError("nix-instantiate gave an answer of an unknown form", hint="install nixery-core again")
    return _Answer(entries, known)

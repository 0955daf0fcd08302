"""Build or substitute outputs, hold them, and read their closure."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidClosure, NixBuildError, NixError, NixTimeout
from nixery_core.events import EventCallback
from nixery_core.model.closure import Closure
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.storepath import StorePath
from nixery_core.nix._call import Call
from nixery_core.nix._load_errors import first_paragraph, setup_hint
from nixery_core.nix._log import NixLog
from nixery_core.nix._process import Deadline
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.realiser import Realisation

_PATH_INFO = ("path-info", "--extra-experimental-features", "nix-command", "--json", "--recursive")
_TIMED_OUT = 101
_HASH_MISMATCH = 102
_SLACK = 2.0
_DERIVATION = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+?\.drv\b")
_FOREIGN = re.compile(r"a '[^']+' with features .* is required|required system", re.IGNORECASE)
_GONE = ("missing derivation", "is not valid", "don't know how to build")


@attrs.frozen
class Realiser:
    """Realises packages in one store."""

    call: Call
    store_dir: str
    """The physical folder of the store."""
    max_silent: float | None
    deadline: Deadline
    on_event: EventCallback
    cancellation: Cancellation

    @contextmanager
    def realise(self, packages: Sequence[ResolvedPackage]) -> Iterator[Realisation]:
        """Hold the outputs of *packages* until the context ends."""
        wanted = _installables(packages)
        roots = sorted({output.path for package in packages for output in package.outputs})
        with tempfile.TemporaryDirectory(prefix="nixery-core-roots-") as folder:
            if wanted:
                self._build(wanted, Path(folder) / "root")
            closure = self._closure(roots)
            self._check_reachable(closure)
            yield Realisation(closure=closure, reader=DirectoryReader(self.store_dir))

    def _build(self, wanted: list[str], root: Path) -> None:
        arguments = ["--realise", *wanted, "--add-root", str(root), "--log-format", "internal-json"]
        limit = None
        if self.max_silent is not None:
            # Nix watches each builder, we watch Nix itself and leave it the first word
            arguments += ["--max-silent-time", str(math.ceil(self.max_silent))]
            limit = math.ceil(self.max_silent) + _SLACK
        log = NixLog(self.on_event)
        finished = self.call(
            "nix-store",
            arguments,
            log=log,
            deadline=self.deadline,
            cancellation=self.cancellation,
            max_silent=limit,
        )
        if finished.returncode != 0:
            raise _build_error(log, finished.returncode, self.max_silent)

    def _closure(self, roots: Sequence[StorePath]) -> Closure:
        if not roots:
            return Closure((), ())
        log = NixLog(self.on_event)
        finished = self.call(
            "nix",
            [*_PATH_INFO, *map(str, roots)],
            log=log,
            deadline=self.deadline,
            cancellation=self.cancellation,
        )
        if finished.returncode != 0:
            reason = first_paragraph(log, finished.returncode)
            raise NixError(f"nix path-info cannot tell the closure: {reason}", hint=setup_hint(reason))
        try:
            return Closure.from_path_info(json.loads(finished.stdout), roots)
        except (ValueError, RecursionError) as error:
            raise NixError(f"the answer of nix path-info is not JSON: {error}") from error
        except InvalidClosure as error:
            raise NixError(f"nix path-info gave no closure: {error.message}", hint=error.hint) from error

    def _check_reachable(self, closure: Closure) -> None:
        for root in closure.roots:
            path = Path(self.store_dir) / root.base
            if not path.exists() and not path.is_symlink():
                raise NixError(
                    f"Nix has {root}, but it is not in {self.store_dir}",
                    hint="name the store that Nix uses, where this machine can read it: Nix(store=...)",
                )


def _installables(packages: Sequence[ResolvedPackage]) -> list[str]:
    wanted: dict[str, None] = {}
    for package in packages:
        if package.derivation is None:
            raise NixError(
                f"{package.attribute} has no derivation, so Nix cannot build it",
                hint="realise it with what evaluated it: a binary cache",
            )
        wanted.update(dict.fromkeys(f"{package.derivation}!{output.name}" for output in package.outputs))
    return sorted(wanted)


def _build_error(log: NixLog, returncode: int, max_silent: float | None) -> NixBuildError | NixTimeout:
    # the first that names a derivation: the others only say that they needed it
    about = next((error for error in log.errors if _DERIVATION.search(error)), None)
    reason = " ".join(about.split("\n\n")[0].split()) if about else first_paragraph(log, returncode)
    named = _DERIVATION.search(reason)
    derivation = named.group() if named else ""
    tail = log.build_tail(derivation) or (() if about else log.tail())
    if returncode == _TIMED_OUT:
        return NixTimeout(
            f"{derivation or 'a build'} said nothing for too long: {reason}",
            seconds=max_silent or 0.0,
            log_tail=tail,
            hint="allow more: Nix(max_silent=...)",
        )
    return NixBuildError(
        f"Nix cannot provide the packages: {reason}",
        derivation=derivation,
        log_tail=tail,
        hint=_build_hint(reason, derivation, returncode),
    )


def _build_hint(reason: str, derivation: str, returncode: int) -> str:
    if _FOREIGN.search(reason):
        return (
            "this machine cannot build for that platform: register an emulator with binfmt_misc and set"
            " extra-platforms, name a remote builder, or a substituter that has it built"
        )
    if any(sign in reason for sign in _GONE):
        return "the garbage collector was faster: try again"
    if returncode == _HASH_MISMATCH:
        return "what was downloaded is not what the package set expects: use another revision of it"
    return setup_hint(reason) or (f"see the whole log: nix-store --read-log {derivation}" if derivation else "")

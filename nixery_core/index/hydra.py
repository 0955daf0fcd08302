"""A jobset of Hydra, the build farm of NixOS, as a package index.

Source: Hydra, ``hydra-api.yaml``: ``/job/{project}/{jobset}/{job}/latest``;
``JobsetEval.pm``: ``/eval/{id}/job/{job}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import attrs

from nixery_core._fetch import fetch_json
from nixery_core._redact import redact
from nixery_core._remembered import Remembered, ttl_seconds
from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidConfig, InvalidStorePath, InvalidTag, PackageProblem, ProblemKind, SourceError
from nixery_core.index.entry import IndexEntry, default_install
from nixery_core.index.names import Found
from nixery_core.index.package_index import Choose, LookedUp, explicit_package
from nixery_core.model.names import check_tag
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.sources import DEFAULT_TAG

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_EVALUATION = re.compile(r"[1-9][0-9]{0,18}")
_THREADS = 8
_REMEMBERED = 4096
_STATUS = {1: "it failed", 2: "a dependency failed", 4: "it was cancelled", 7: "it timed out"}


@attrs.frozen
class HydraIndex:
    """The packages of a jobset of Hydra; nothing is evaluated.

    The tag ``latest`` means the last build of each job that succeeded: that moves, so images of it
    are not cached.  A number is an evaluation of Hydra, whose builds do not change.

    Hydra is asked for one job after the other and has no list of them, so names are literal, but for
    the ``_`` before a digit.  It does not tell which outputs a package installs; taken is what
    nixpkgs takes: ``bin`` or else ``out``, and ``man``.

    >>> HydraIndex("nixpkgs", "trunk").url
    'https://hydra.nixos.org/jobset/nixpkgs/trunk'
    """

    project: str
    jobset: str
    ttl: float = attrs.field(default=600.0, kw_only=True, converter=ttl_seconds)
    """How long the answer about a job is believed, seconds."""
    hydra_url: str = attrs.field(default="https://hydra.nixos.org", kw_only=True, repr=redact)
    job: str = attrs.field(default="{attribute}.{system}", kw_only=True)
    """How the jobset calls the job of a package; ``{attribute}`` and ``{system}`` are filled in."""
    _remembered: Remembered = attrs.field(factory=lambda: Remembered(_REMEMBERED), init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in (self.project, self.jobset):
            if not _NAME.fullmatch(name):
                raise InvalidConfig(f"{name!r} is not the name of a project or jobset of Hydra")
        if "{attribute}" not in self.job:
            raise InvalidConfig("job has no {attribute} in it", hint="write {attribute}.{system}")

    @property
    def kind(self) -> str:
        """Which kind of index."""
        return "hydra"

    @property
    def url(self) -> str:
        """The page of the jobset, and how its jobs are called where that is not the usual way."""
        url = f"{self.hydra_url.rstrip('/')}/jobset/{self.project}/{self.jobset}"
        return url if self.job == "{attribute}.{system}" else f"{url}?job={quote(self.job)}"

    def snapshot(self, tag: str) -> HydraSnapshot:
        """Return the jobs at an evaluation, or as they are; raises InvalidTag."""
        if check_tag(tag) == DEFAULT_TAG:
            return HydraSnapshot(index=self, evaluation=None)
        if not _EVALUATION.fullmatch(tag):
            raise InvalidTag(
                f"{tag!r} is not an evaluation of the jobset {self.project}:{self.jobset}",
                hint=f"use the tag {DEFAULT_TAG}, or the number of an evaluation",
            )
        return HydraSnapshot(index=self, evaluation=int(tag))

    def build(self, attribute: str, platform: Platform, evaluation: int | None) -> Mapping[str, Any] | None:
        """Return what Hydra tells of a build, or None where there is none; raises SourceError."""
        job = quote(self.job.replace("{attribute}", attribute).replace("{system}", platform.system))
        root = self.hydra_url.rstrip("/")
        if evaluation is None:
            url = f"{root}/job/{self.project}/{self.jobset}/{job}/latest"
        else:
            # a build that is not finished will be, so this too is believed for a while only
            url = f"{root}/eval/{evaluation}/job/{job}"
        build = self._remembered.get(url, self.ttl, lambda: fetch_json(url))
        if build is not None and not (isinstance(build, dict) and isinstance(build.get("buildoutputs"), dict)):
            raise SourceError(f"{redact(url)} is not a build of Hydra", hint="check hydra_url")
        if build is not None and (build.get("project"), build.get("jobset")) != (self.project, self.jobset):
            raise SourceError(
                f"{redact(url)} is a build of {build.get('project')}:{build.get('jobset')}",
                hint="is the evaluation one of this jobset?",
            )
        return build


@attrs.frozen(kw_only=True)
class HydraSnapshot:
    """A jobset at one evaluation, or as it is."""

    index: HydraIndex
    evaluation: int | None

    @property
    def revision(self) -> str | None:
        """The evaluation, or None where each job is what it was built last."""
        return None if self.evaluation is None else f"evaluation-{self.evaluation}"

    def look_up(
        self,
        names: Sequence[str],
        platform: Platform,
        *,
        choose: Choose,  # noqa: ARG002 (a job is for one platform)
        cancellation: Cancellation,
    ) -> list[LookedUp]:
        """Ask Hydra for each name, several at once."""

        def ask(name: str) -> LookedUp:
            cancellation.check()
            return explicit_package(name) or self._look_up(name, platform)

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="nixery-hydra") as pool:
            futures = [pool.submit(ask, name) for name in names]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()

    def _look_up(self, name: str, platform: Platform) -> LookedUp:
        meanings = [name, *([f"_{name}"] if name[:1].isdecimal() else [])]
        for attribute in meanings:
            build = self.index.build(attribute, platform, self.evaluation)
            if build is not None:
                return _entry(build, platform).resolve(name, Found(attribute))
        set_path, _, output = name.rpartition(".")
        # the outputs of a package are no jobs of their own
        build = self.index.build(set_path, platform, self.evaluation) if set_path else None
        if build is not None:
            return _entry(build, platform).resolve(name, Found(set_path, (output,)))
        return PackageProblem(name, ProblemKind.NOT_FOUND, f"Hydra has no build of it for {platform.system}")


def _entry(build: Mapping[str, Any], platform: Platform) -> IndexEntry:
    system, status = build.get("system"), build.get("buildstatus")
    if system != platform.system:
        return IndexEntry(problem=ProblemKind.UNSUPPORTED_PLATFORM, reason=f"the job is for {system}")
    if not build.get("finished"):
        return IndexEntry(problem=ProblemKind.FAILED, reason=f"build {build.get('id')} is not finished")
    if status != 0:
        why = _STATUS.get(status, "it did not succeed") if isinstance(status, int) else "it did not succeed"
        return IndexEntry(problem=ProblemKind.FAILED, reason=f"build {build.get('id')}: {why}")
    try:
        outputs = {str(name): StorePath.parse(out["path"]) for name, out in build["buildoutputs"].items()}
    except (KeyError, TypeError, AttributeError, InvalidStorePath) as error:
        raise SourceError(f"build {build.get('id')} of Hydra has outputs without store paths: {error}") from None
    if not outputs:
        return IndexEntry(problem=ProblemKind.NOT_A_PACKAGE, reason=f"build {build.get('id')} has no outputs")
    return IndexEntry(outputs=outputs, install=default_install(tuple(outputs)))

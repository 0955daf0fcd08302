"""What a channel of nixpkgs publishes beside its expressions, as a package index.

Two documents: ``packages.json.br`` has every attribute with the name of its derivation, its outputs
and what its meta says; ``store-paths.xz`` has every store path that was built.  They are matched by
name: an output ``out`` has the name of the derivation, any other ``<name>-<output>`` (Nix:
``outputPathName``).

Source: nixpkgs, ``pkgs/top-level/packages-info.nix``; Hydra, ``JobsetEval::store_paths``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nixery_core._documents import read_document
from nixery_core._redact import redact
from nixery_core._remembered import Remembered, ttl_seconds
from nixery_core.cancellation import Cancellation
from nixery_core.errors import (
    InvalidConfig,
    InvalidDocument,
    InvalidTag,
    ObjectNotFound,
    PackageProblem,
    ProblemKind,
    RevisionNotFound,
    SourceError,
    StorageError,
)
from nixery_core.index.entry import IndexEntry, default_install
from nixery_core.index.names import Found, NameTable
from nixery_core.index.package_index import Choose, LookedUp, explicit_package
from nixery_core.model.names import check_tag
from nixery_core.model.package import DEFAULT_PRIORITY, package_priority
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.sources import DEFAULT_TAG, is_commit

_CHANNEL = re.compile(r"[a-z0-9][a-z0-9._-]*")
_STORE_PATH = re.compile(r"/nix/store/([0-9abcdfghijklmnpqrsvwxyz]{32})-([0-9A-Za-z+\-._?=]+)")
_META = {"outputsToInstall", "priority", "unfree", "broken", "insecure", "unsupported", "available"}
_MARKS = (
    ("unfree", True, ProblemKind.UNFREE),
    ("broken", True, ProblemKind.BROKEN),
    ("insecure", True, ProblemKind.INSECURE),
    ("unsupported", True, ProblemKind.UNSUPPORTED_PLATFORM),
    ("available", False, ProblemKind.UNSUPPORTED_PLATFORM),
)
_ATTEMPTS = 3


@attrs.frozen
class _Package:
    """What packages.json says of one attribute."""

    name: str
    """The name of the derivation."""
    version: str
    outputs: tuple[str, ...]
    install: tuple[str, ...]
    priority: int
    problem: ProblemKind | None
    """What stands against it where it was not built."""


@attrs.frozen
class ChannelIndex:
    """The store paths that a channel publishes; nixpkgs is never evaluated.

    The revision is the commit of the channel.  A name whose store path cannot be told from others of
    the same name is an error that lists them.

    >>> ChannelIndex("nixos-unstable").url
    'https://channels.nixos.org/nixos-unstable'
    """

    channel: str
    """``nixos-24.05``, ``nixos-unstable`` ..."""
    ttl: float = attrs.field(default=600.0, kw_only=True, converter=ttl_seconds)
    """How long the commit of the channel is believed, seconds."""
    channels_url: str = attrs.field(default="https://channels.nixos.org", kw_only=True, repr=redact)
    """Where the folder of the channel is: a web address, a path, or any URL that fsspec knows."""
    _revisions: Remembered = attrs.field(factory=Remembered, init=False, eq=False, repr=False)
    _documents: Remembered = attrs.field(factory=lambda: Remembered(1), init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not _CHANNEL.fullmatch(self.channel):
            raise InvalidConfig(f"{self.channel!r} is not a channel", hint="write nixos-unstable or nixos-24.05")

    @property
    def kind(self) -> str:
        """Which kind of index."""
        return "channel"

    @property
    def url(self) -> str:
        """The folder of the channel."""
        return f"{self.channels_url.rstrip('/')}/{self.channel}"

    def snapshot(self, tag: str) -> ChannelSnapshot:
        """Read what the channel publishes; the only tags are ``latest`` and the channel itself."""
        if check_tag(tag) not in (DEFAULT_TAG, self.channel):
            raise InvalidTag(f"the channel {self.channel} has no tag {tag!r}", hint=f"use the tag {DEFAULT_TAG}")
        revision = self._revisions.get(self.channel, self.ttl, self._revision)
        # a channel that did not move is not read again
        return self._documents.get(revision, float("inf"), self._read)

    def _revision(self) -> str:
        url = f"{self.url}/git-revision"
        revision = _document(url, f"there is no channel {self.channel}").decode(errors="replace").strip()
        if not is_commit(revision):
            raise SourceError(f"{redact(url)} holds no commit but {revision[:60]!r}", hint="check channels_url")
        return revision

    def _read(self) -> ChannelSnapshot:
        for _ in range(_ATTEMPTS):
            revision = self._revision()
            missing = f"the channel {self.channel} publishes no packages"
            packages = _document(f"{self.url}/packages.json.br", missing)
            store_paths = _document(f"{self.url}/store-paths.xz", missing)
            # the three are no unit: the channel may have moved in between
            if self._revision() == revision:
                return ChannelSnapshot.parse(packages, store_paths, revision=revision, where=redact(self.url))
        raise SourceError(f"the channel {self.channel} moves while it is read", hint="try again")


@attrs.frozen(kw_only=True, eq=False)
class ChannelSnapshot:
    """A channel at one commit."""

    revision: str
    names: NameTable
    packages: Mapping[str, _Package] = attrs.field(repr=False)
    store_paths: Mapping[str, str] = attrs.field(repr=False)
    """The hashes of all store paths of one name, one after the other."""

    @classmethod
    def parse(cls, packages: bytes, store_paths: bytes, *, revision: str, where: str) -> ChannelSnapshot:
        """Read the two documents, unpacked; raises SourceError, which names *where*."""
        try:
            document = json.loads(packages, object_pairs_hook=_lean)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"packages.json of {where} is not JSON: {error}") from None
        found = document.get("packages") if isinstance(document, dict) else None
        if not isinstance(found, dict) or str(document.get("version")) != "2":
            raise SourceError(f"packages.json of {where} is not of version 2", hint="is it a channel of nixpkgs?")
        read = {attribute: _package(value) for attribute, value in found.items()}
        known = {attribute: package for attribute, package in read.items() if package is not None}
        return cls(revision=revision, names=NameTable(known), packages=known, store_paths=_hashes(store_paths, where))

    def look_up(
        self, names: Sequence[str], platform: Platform, *, choose: Choose, cancellation: Cancellation
    ) -> list[LookedUp]:
        """Return for each name its package or why there is none."""
        looked = []
        for name in names:
            cancellation.check()
            looked.append(self._look_up(name, platform, choose))
        return looked

    def _look_up(self, name: str, platform: Platform, choose: Choose) -> LookedUp:
        explicit = explicit_package(name)
        if explicit is not None:
            return explicit
        found = self.names.find(name)
        if isinstance(found, PackageProblem):
            return found
        package = self.packages[found.attribute]
        wanted = _wanted(package, found)
        candidates = {output: self._paths(_output_name(package.name, output)) for output in wanted}
        missing = [output for output, paths in candidates.items() if not paths]
        if missing:
            if package.problem is not None:
                return PackageProblem(name, package.problem)
            reason = (
                f"the channel has no store path named {_output_name(package.name, missing[0])}, so it was not built"
            )
            return PackageProblem(name, ProblemKind.FAILED, reason)
        chosen = {
            output: paths[0] if len(paths) == 1 else choose(paths, platform) for output, paths in candidates.items()
        }
        outputs = {output: path for output, path in chosen.items() if path is not None}
        if len(outputs) < len(chosen):
            unclear = next(output for output, path in chosen.items() if path is None)
            bases = tuple(path.base for path in candidates[unclear])
            reason = f"{len(bases)} store paths are named {_output_name(package.name, unclear)}"
            return PackageProblem(name, ProblemKind.AMBIGUOUS, reason, candidates=bases)
        install = tuple(output for output in package.install if output in outputs) or tuple(outputs)
        entry = IndexEntry(outputs=outputs, install=install, version=package.version, priority=package.priority)
        return entry.resolve(name, found)

    def _paths(self, name: str) -> list[StorePath]:
        hashes = self.store_paths.get(name, "")
        return [StorePath(hashes[start : start + 32], name) for start in range(0, len(hashes), 32)]


def _wanted(package: _Package, found: Found) -> tuple[str, ...]:
    """Return the outputs whose store paths are needed."""
    named = tuple(output for output in package.outputs if found.rest and output.lower() == found.rest[0].lower())
    return named or package.install


def _output_name(name: str, output: str) -> str:
    return name if output == "out" else f"{name}-{output}"


def _document(url: str, missing: str) -> bytes:
    try:
        return read_document(url)
    except ObjectNotFound as error:
        raise RevisionNotFound(f"{missing}: {error.message}", hint=error.hint) from None
    except (InvalidDocument, StorageError) as error:
        raise SourceError(error.message, hint=error.hint) from error


def _lean(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Keep of a meta what is used: with maintainers and licences the document takes a gigabyte."""
    value = dict(pairs)
    if len(value) < 100 and ("available" in value or "outputsToInstall" in value) and "meta" not in value:
        return {name: value[name] for name in _META & value.keys()}
    return value


def _package(value: Any) -> _Package | None:
    """Return one entry of packages.json, or None for one that names no store path."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    meta = value.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    # a list in new documents, an object without values in older ones
    outputs = _texts(value.get("outputs")) or ("out",)
    install = _texts(meta.get("outputsToInstall")) or default_install(outputs)
    version = value.get("version")
    return _Package(
        name=value["name"],
        version=version if isinstance(version, str) else "",
        outputs=tuple(dict.fromkeys(outputs + install)),
        install=install,
        priority=package_priority(meta.get("priority", DEFAULT_PRIORITY)),
        problem=next((kind for mark, bad, kind in _MARKS if meta.get(mark) is bad), None),
    )


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, Mapping)) and all(isinstance(text, str) for text in value):
        return tuple(value)
    return ()


def _hashes(data: bytes, where: str) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        match = _STORE_PATH.fullmatch(line)
        if match is None:
            raise SourceError(f"store-paths.xz of {where}: line {number} is no store path: {line[:80]!r}")
        hashes[match[2]] = hashes.get(match[2], "") + match[1]
    return hashes

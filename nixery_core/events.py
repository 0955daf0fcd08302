"""What a build tells while it runs: a stream of typed, frozen events to one callback.

Events hold plain values only, so they pickle and can be written as JSON.
The callback may be called from several threads, one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class BuildEvent:
    """Base of all events."""


EventCallback = Callable[[BuildEvent], None]
"""What users pass in to follow a build."""


def ignore_events(event: BuildEvent) -> None:
    """Do nothing with an event: the default callback."""


@attrs.frozen(kw_only=True)
class SourceResolved(BuildEvent):
    """The package source was resolved."""

    source: str
    """What was resolved, secrets masked."""
    revision: str | None
    """The immutable revision, or None for a source that may change under our hands."""


@attrs.frozen(kw_only=True)
class ManifestCached(BuildEvent):
    """The whole image was found in the manifest cache; Nix is not called."""

    digest: str


@attrs.frozen(kw_only=True)
class PackagesResolved(BuildEvent):
    """Every name was found in the package set."""

    attributes: tuple[str, ...]
    """The attribute paths that the names stand for, in canonical order."""


@attrs.frozen(kw_only=True)
class PackageSkipped(BuildEvent):
    """An optional package is not in this package set and was left out."""

    name: str
    reason: str


@attrs.frozen(kw_only=True)
class NixBuildStarted(BuildEvent):
    """Nix began to build a derivation."""

    derivation: str


@attrs.frozen(kw_only=True)
class NixPhase(BuildEvent):
    """A derivation entered a phase of its build."""

    derivation: str
    phase: str


@attrs.frozen(kw_only=True)
class NixLogLine(BuildEvent):
    """A builder printed a line; no derivation where Nix itself speaks."""

    derivation: str | None
    line: str


@attrs.frozen(kw_only=True)
class NixProgress(BuildEvent):
    """How far Nix is, over all derivations and substitutions that it knows of."""

    activity: str
    """``build`` or ``copy``."""
    done: int
    expected: int
    running: int
    failed: int


@attrs.frozen(kw_only=True)
class IndexProgress(BuildEvent):
    """Some more of a package set was described for an index."""

    described: int
    """Packages so far."""
    waiting: int
    """Attributes that are known to be left; sets among them may hold more."""


@attrs.frozen(kw_only=True)
class ClosureResolved(BuildEvent):
    """The closure is known."""

    paths: int
    nar_size: int
    """Sum of the NAR sizes, bytes."""


@attrs.frozen(kw_only=True)
class LayersPlanned(BuildEvent):
    """The closure was split into layers."""

    layers: int


@attrs.frozen(kw_only=True)
class FileCollision(BuildEvent):
    """Two packages have different files under one name; one of them was linked."""

    path: str
    """The path in the image."""
    chosen: str
    """What the link points to."""
    rejected: str
    """What it could have pointed to."""


@attrs.frozen(kw_only=True)
class PackageNotLinked(BuildEvent):
    """An output of a requested package is a file, so it has no place in the symlink forest."""

    store_path: str


@attrs.frozen(kw_only=True)
class LayerCached(BuildEvent):
    """A layer was found in the layer cache and is not written again."""

    layer_key: str
    digest: str
    size: int
    """Size of the blob, bytes."""


@attrs.frozen(kw_only=True)
class LayerStarted(BuildEvent):
    """A layer is being written."""

    layer_key: str
    nar_size: int
    """Size of its store paths, bytes: what progress counts towards."""


@attrs.frozen(kw_only=True)
class LayerProgress(BuildEvent):
    """Some more of a layer went into its archive."""

    layer_key: str
    archived: int
    """Bytes of file content archived so far."""


@attrs.frozen(kw_only=True)
class LayerBuilt(BuildEvent):
    """A layer is in the storage."""

    layer_key: str
    digest: str
    diff_id: str
    size: int
    """Size of the blob, bytes."""


@attrs.frozen(kw_only=True)
class StorageRetried(BuildEvent):
    """The storage was too busy, or the connection broke; the same request is sent again after a pause."""

    operation: str
    """What was asked for, such as ``put``, ``get``, ``upload part``."""
    key: str
    """The storage key in question; empty for a listing of everything."""
    attempt: int
    """How often the request failed so far: 1 at the first time."""
    delay: float
    """Seconds until it is sent again."""
    reason: str
    """What the storage or the connection said, secrets masked."""


@attrs.frozen(kw_only=True)
class ImageStored(BuildEvent):
    """The manifest is in the storage: the image can be pulled."""

    digest: str


@attrs.frozen(kw_only=True)
class ImageEvent(BuildEvent):
    """An event of one image of a batch."""

    index: int
    """The place of the image in the batch, from 0."""
    image: str
    """``name:tag``."""
    event: BuildEvent

"""Package sources: where the package set of an image comes from, and which revision of it.

A source turns the tag of an image into a :class:`Pin`.  There is no default source: whoever
builds an image says where its packages come from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from nixery_core._fetch import fetch_text, git_refs
from nixery_core._fields import hash_fields
from nixery_core._redact import redact
from nixery_core._remembered import Remembered, ttl_seconds
from nixery_core.errors import InvalidConfig, InvalidTag, RevisionNotFound, SourceError, nearest
from nixery_core.model.names import check_tag
from nixery_core.model.oci import canonical_json

DEFAULT_TAG = "latest"
"""The tag that stands for whatever the source itself names."""

CACHE_KEY_VERSION = 1
"""Changes whenever equal fields would make another image."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9._-]*")


@attrs.frozen(kw_only=True)
class Pin:
    """A package source at one point in time."""

    kind: str
    """``nixpkgs``, ``git``, ``path``, or what another kind of source calls itself."""
    url: str
    """Where it is; part of the identity.  May hold secrets."""
    revision: str | None
    """The immutable revision, or None where the content can change under our hands."""
    fetch: Mapping[str, Any]
    """The argument ``source`` of nix/load.nix: ``{"type": "tarball", "url": ..}``,
    ``{"type": "git", "url": .., "rev": .., "ref": ..}`` (``ref`` only where known) or
    ``{"type": "path", "path": ..}``."""
    import_args: Mapping[str, Any] = attrs.field(factory=dict)
    """JSON values passed to the package set when it is a function: ``{"config": {"allowUnfree": true}}``."""

    def describe(self) -> str:
        """Return the source and its revision for a person, secrets masked."""
        return redact(self.url) + (f" at {self.revision}" if self.revision else " (moving)")


@attrs.frozen
class CacheKey:
    """The identity of everything that decides the bytes of an image: 64 hexadecimal characters."""

    value: str

    @classmethod
    def of(cls, pin: Pin, fields: Mapping[str, str | bytes]) -> CacheKey | None:
        """Return the key of an image made of *pin* and *fields*, or None where the pin moves.

        Every field goes in with its label and its length, so no two sets of fields share a key.

        >>> pin = Pin(kind="git", url="https://example.org/set", revision="0" * 40, fetch={})
        >>> CacheKey.of(pin, {"packages": "git"}) == CacheKey.of(pin, {"packages": "htop"})
        False
        >>> CacheKey.of(attrs.evolve(pin, revision=None), {"packages": "git"}) is None
        True
        """
        if pin.revision is None:
            return None
        # a rotated token is no other source
        source: list[str | bytes] = [pin.kind, redact(pin.url), pin.revision, canonical_json(dict(pin.import_args))]
        labelled = [part for label in sorted(fields) for part in (label, fields[label])]
        return cls(hash_fields(f"image {CACHE_KEY_VERSION}", [*source, *labelled]))

    def __str__(self) -> str:
        return self.value


class PackageSource(Protocol):
    """Where the packages of an image come from; any object with this method is a source."""

    def pin(self, tag: str) -> Pin:
        """Resolve the tag of an image; raises InvalidTag, RevisionNotFound or SourceError."""
        ...


def _import_args(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(dict(value))
    except (TypeError, ValueError) as error:
        raise InvalidConfig(
            f"import_args are not JSON values: {error}", hint="use texts, numbers, lists and dicts"
        ) from None
    return dict(value)


def is_commit(text: str) -> bool:
    """Return whether *text* is a full commit id: 40 or 64 hexadecimal characters."""
    return _COMMIT.fullmatch(text) is not None


@attrs.frozen
class NixpkgsChannel:
    """A channel of nixpkgs by name, or nixpkgs at one full commit.

    A channel is resolved to its commit, and the archive of that commit is what Nix reads, so an
    image names exactly what it was made of.

    >>> pin = NixpkgsChannel("5f5210aa20e343b7e35f40c033000db0ef80d7b9").pin("latest")
    >>> pin.fetch["url"]
    'https://github.com/NixOS/nixpkgs/archive/5f5210aa20e343b7e35f40c033000db0ef80d7b9.tar.gz'
    """

    channel: str
    """``nixos-24.05``, ``nixos-unstable`` ..., or a full commit."""
    ttl: float = attrs.field(default=600.0, kw_only=True, converter=ttl_seconds)
    """How long the commit of a channel is believed, seconds."""
    import_args: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, converter=_import_args)
    """JSON values passed to nixpkgs: ``{"config": {"allowUnfree": True}}``."""
    channels_url: str = attrs.field(default="https://channels.nixos.org", kw_only=True)
    """Where ``<channel>/git-revision`` is found."""
    archive_url: str = attrs.field(default="https://github.com/NixOS/nixpkgs/archive/{revision}.tar.gz", kw_only=True)
    """The archive of a commit; ``{revision}`` stands for it."""
    _remembered: Remembered = attrs.field(factory=Remembered, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not _CHANNEL.fullmatch(self.channel):
            raise InvalidConfig(
                f"{self.channel!r} is not a channel", hint="write nixos-unstable, nixos-24.05 or a full commit"
            )
        if "{revision}" not in self.archive_url:
            raise InvalidConfig("archive_url has no {revision} in it", hint="write where the commit belongs")

    def pin(self, tag: str) -> Pin:
        """Resolve the channel to its commit; the only tags are ``latest`` and the channel itself."""
        if check_tag(tag) not in (DEFAULT_TAG, self.channel):
            raise InvalidTag(
                f"the channel {self.channel} has no tag {tag!r}",
                hint=f"use the tag {DEFAULT_TAG}, or a git source, whose branches and tags are image tags",
            )
        revision = self.channel
        if not is_commit(revision):
            revision = self._remembered.get(self.channel, self.ttl, self._channel_revision)
        return Pin(
            kind="nixpkgs",
            url=self.archive_url,
            revision=revision,
            fetch={"type": "tarball", "url": self.archive_url.replace("{revision}", revision)},
            import_args=self.import_args,
        )

    def _channel_revision(self) -> str:
        url = f"{self.channels_url.rstrip('/')}/{self.channel}/git-revision"
        text = fetch_text(url, missing=f"there is no channel {self.channel}")
        revision = text.strip()
        if not is_commit(revision):
            raise SourceError(f"{url} holds no commit but {revision[:60]!r}", hint="check channels_url")
        return revision


@attrs.frozen
class GitRepository:
    """A package set in a git repository; image tags are its branches, tags and full commits.

    Branches and tags are resolved to their commit first, so images of them are cached too.
    """

    url: str = attrs.field(repr=redact)
    """What ``git clone`` takes."""
    ref: str | None = attrs.field(default=None, kw_only=True)
    """What the tag ``latest`` means: a branch, a tag, ``refs/...`` or a full commit; by default the remote's HEAD."""
    ttl: float = attrs.field(default=60.0, kw_only=True, converter=ttl_seconds)
    """How long the commit of a branch or tag is believed, seconds."""
    import_args: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, converter=_import_args)
    """JSON values passed to the package set when it is a function."""
    _remembered: Remembered = attrs.field(factory=Remembered, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # "-x" would be read as an option, "ext::sh -c .." runs a program
        if not self.url or self.url.startswith("-") or re.match(r"[A-Za-z0-9]+::", self.url) or "\0" in self.url:
            raise InvalidConfig(
                f"{self.url!r} is not the URL of a git repository", hint="write https://.., ssh://.. or a path"
            )
        if self.ref is not None and (
            not self.ref or self.ref.startswith("-") or re.search(r"[\s\0~^:?*\[\\]", self.ref)
        ):
            raise InvalidConfig(f"{self.ref!r} is not a branch, tag or commit")

    def pin(self, tag: str) -> Pin:
        """Resolve a branch, tag or full commit; ``latest`` is what the source itself names."""
        check_tag(tag)
        wanted = (self.ref or "HEAD") if tag == DEFAULT_TAG else tag
        if is_commit(wanted):
            revision, ref = wanted, None
        else:
            revision, ref = self._remembered.get(wanted, self.ttl, lambda: self._resolve(wanted))
        url = self.url if "://" in self.url or not Path(self.url).exists() else str(Path(self.url).resolve())
        fetch = {"type": "git", "url": url, "rev": revision} | ({} if ref is None else {"ref": ref})
        return Pin(kind="git", url=url, revision=revision, fetch=fetch, import_args=self.import_args)

    def _resolve(self, wanted: str) -> tuple[str, str | None]:
        names = (
            [wanted]
            if wanted == "HEAD" or wanted.startswith("refs/")
            else [f"refs/heads/{wanted}", f"refs/tags/{wanted}"]
        )
        refs = git_refs(self.url, names)
        found = {name: refs.commits[name] for name in names if name in refs.commits}
        if not found:
            every = git_refs(self.url, []).commits
            close = nearest(wanted, [n.split("/", 2)[2] for n in every if n.startswith(("refs/heads/", "refs/tags/"))])
            raise RevisionNotFound(
                f"{redact(self.url)} has no branch or tag {wanted!r}",
                hint=f"did you mean {' or '.join(close)}?" if close else "a commit is named by all its 40 characters",
            )
        if len(set(found.values())) > 1:
            raise RevisionNotFound(
                f"{redact(self.url)} has a branch and a tag {wanted!r}, at different commits",
                hint=f"name the one you mean in the source: ref='refs/heads/{wanted}' or 'refs/tags/{wanted}'",
            )
        name, revision = next(iter(found.items()))
        # Nix 2.26 refuses the ref HEAD; without any ref Nix has to fetch all of them
        return revision, refs.head if name == "HEAD" else name


@attrs.frozen
class LocalPath:
    """A package set in a folder or file of this machine.

    It may change at any time, so its images are never looked up by name; their layers are cached
    all the same.  A path in the Nix store cannot change and counts as pinned.
    """

    path: Path = attrs.field(converter=Path)
    """A folder with a ``default.nix``, or a ``.nix`` file."""
    import_args: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, converter=_import_args)
    """JSON values passed to the package set when it is a function."""

    def pin(self, tag: str) -> Pin:
        """Return the folder as it is; the only tag is ``latest``."""
        if check_tag(tag) != DEFAULT_TAG:
            raise InvalidTag(f"the folder {self.path} has no tags, so not {tag!r}", hint=f"use the tag {DEFAULT_TAG}")
        try:
            path = self.path.resolve(strict=True)
            entry = path / "default.nix" if path.is_dir() else path
            with entry.open("rb"):
                pass
        except OSError as error:
            raise SourceError(
                f"the package set {self.path} cannot be read: {os.strerror(error.errno or 0)}",
                hint="name a folder with a default.nix, or a .nix file",
            ) from error
        in_store = re.match(r"/nix/store/([^/]+)", str(path))
        return Pin(
            kind="path",
            url=str(path),
            revision=in_store.group(1) if in_store else None,
            fetch={"type": "path", "path": str(path)},
            import_args=self.import_args,
        )

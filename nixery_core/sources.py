"""Package sources: where the package set of an image comes from, and which revision of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Pin:
    """A package source at one point in time."""

    kind: str
    """Which kind of source: ``nixpkgs``, ``git``, ``path``."""
    url: str
    """Where it is; part of the identity.  May hold secrets."""
    revision: str | None
    """The immutable revision, or None where the content can change under our hands."""
    fetch: Mapping[str, Any]
    """The argument ``source`` of nix/load.nix: ``{"type": "tarball", "url": ..}``,
    ``{"type": "git", "url": .., "rev": .., "ref": ..}`` (``ref`` only where known), ``{"type": "path", "path": ..}``."""
    import_args: Mapping[str, Any] = attrs.field(factory=dict)
    """JSON values passed to the package set when it is a function: ``{"config": {"allowUnfree": true}}``."""

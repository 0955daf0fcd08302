"""What a path of the registry API names.  Source: distribution-spec, "Endpoints"."""

from __future__ import annotations

from enum import Enum

import attrs

from nixery_core.errors import InvalidDigest, InvalidName, InvalidTag
from nixery_core.model.digest import Digest
from nixery_core.model.names import check_name, check_tag
from nixery_core.server.refusals import invalid_digest, invalid_name, manifest_unknown, no_such_route


class Endpoint(Enum):
    """The endpoints of the pull side, and the one that stands for all of the push side."""

    BASE = "base"
    """``/v2/`` (end-1)."""
    BLOB = "blobs"
    """``/v2/<name>/blobs/<digest>`` (end-2)."""
    MANIFEST = "manifests"
    """``/v2/<name>/manifests/<tag-or-digest>`` (end-3)."""
    TAGS = "tags"
    """``/v2/<name>/tags/list`` (end-8)."""
    REFERRERS = "referrers"
    """``/v2/<name>/referrers/<digest>`` (end-12)."""
    UPLOAD = "uploads"
    """``/v2/<name>/blobs/uploads/..`` (end-4 to end-6, end-11, end-13, end-14): there is no push."""


@attrs.frozen
class Target:
    """What is asked for: an endpoint, with the name and the reference in its path."""

    endpoint: Endpoint
    name: str = ""
    """The repository; empty for the base."""
    tag: str = ""
    """The tag; empty where a digest is asked for, or neither."""
    digest: Digest | None = None


def parse_target(path: str) -> Target:
    """Read a path, percent-decoded; raises Refusal where no endpoint has it.

    >>> target = parse_target("/v2/shell/git/manifests/latest")
    >>> target.endpoint.name, target.name, target.tag
    ('MANIFEST', 'shell/git', 'latest')
    """
    if path in ("/v2/", "/v2"):
        return Target(Endpoint.BASE)
    if not path.startswith("/v2/"):
        raise no_such_route(path)
    words = path.removeprefix("/v2/")
    upload_name, upload, _ = words.partition("/blobs/uploads/")
    if upload or words.endswith("/blobs/uploads"):
        return Target(Endpoint.UPLOAD, _name(upload_name.removesuffix("/blobs/uploads")))
    # names hold slashes, so the last two words decide
    parts = words.rsplit("/", 2)
    if len(parts) < 3:
        raise no_such_route(path)
    text, kind, reference = parts
    match kind:
        case "manifests":
            name = _name(text)
            # no tag has a colon, every digest has one
            if ":" in reference:
                return Target(Endpoint.MANIFEST, name, digest=_digest(reference))
            return Target(Endpoint.MANIFEST, name, tag=_tag(reference))
        case "blobs":
            return Target(Endpoint.BLOB, _name(text), digest=_digest(reference))
        case "referrers":
            return Target(Endpoint.REFERRERS, _name(text), digest=_digest(reference))
        case "tags" if reference == "list":
            return Target(Endpoint.TAGS, _name(text))
    raise no_such_route(path)


def _name(text: str) -> str:
    try:
        return check_name(text)
    except InvalidName as error:
        raise invalid_name(error) from None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise invalid_digest(error) from None


def _tag(text: str) -> str:
    try:
        return check_tag(text)
    except InvalidTag as error:
        # "If the manifest is not found in the repository, the response code MUST be 404"
        raise manifest_unknown(error) from None

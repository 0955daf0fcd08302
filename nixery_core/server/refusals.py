"""Why a request is not answered with what it asks for: status, code and words.

Every failure has the JSON body of the specification, also those that it leaves open (unknown
routes, errors of the server): Docker prints ``unexpected end of JSON`` where there is none.
Docker, podman and skopeo show the message of a 4xx alone, so whatever the reader can do
something about is a 4xx; containerd asks with HEAD and shows the status.  Source:
distribution-spec, "Error Codes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from nixery_core._redact import redact
from nixery_core.errors import (
    Cancelled,
    EvaluationError,
    InputError,
    InvalidTag,
    NixBuildError,
    NixeryError,
    NixTimeout,
    ObjectNotFound,
    PackageError,
    ProblemKind,
    RevisionNotFound,
    SourceError,
    StorageError,
    StoreReadError,
)
from nixery_core.model.oci import canonical_json

# what the package set forbids; everything else is not there
_FORBIDDEN = {ProblemKind.UNFREE, ProblemKind.BROKEN, ProblemKind.INSECURE}


@attrs.frozen(eq=False)
class Refusal(Exception):
    """A failure as the client will see it."""

    status: int
    code: str
    """One of the specification's; for a 5xx one of Docker's ``UNKNOWN`` and ``UNAVAILABLE``."""
    message: str
    detail: Any = None
    """JSON values for programs; left out where it is None."""
    headers: Sequence[tuple[str, str]] = ()

    def body(self) -> bytes:
        """Return the JSON document."""
        error = {"code": self.code, "message": self.message}
        return canonical_json({"errors": [error if self.detail is None else {**error, "detail": self.detail}]})


def no_such_route(path: str) -> Refusal:
    """Nothing is served under a path."""
    return Refusal(404, "UNSUPPORTED", f"there is nothing at {path[:200]}", {"path": path[:200]})


def method_not_allowed(method: str, allowed: str) -> Refusal:
    """An endpoint does not have the method; images come from their names, so none is pushed or deleted."""
    return Refusal(
        405,
        "UNSUPPORTED",
        f"{method[:20]} is not supported here: this registry builds images from their names",
        headers=[("allow", allowed)],
    )


def invalid_name(error: NixeryError) -> Refusal:
    """A name is outside the grammar."""
    return Refusal(400, "NAME_INVALID", str(error))


def invalid_digest(error: NixeryError) -> Refusal:
    """A digest is malformed or of an unknown algorithm."""
    return Refusal(400, "DIGEST_INVALID", str(error))


def invalid_query(message: str) -> Refusal:
    """A query parameter is malformed."""
    return Refusal(400, "UNSUPPORTED", message)


def manifest_unknown(error: NixeryError | str) -> Refusal:
    """There is no such manifest."""
    return Refusal(404, "MANIFEST_UNKNOWN", str(error))


def blob_unknown(digest: object) -> Refusal:
    """There is no such blob."""
    return Refusal(404, "BLOB_UNKNOWN", f"there is no blob {digest}", {"digest": str(digest)})


def upload_unknown() -> Refusal:
    """There is no push, so no upload was ever begun."""
    return Refusal(404, "BLOB_UPLOAD_UNKNOWN", "there are no uploads: this registry builds images from their names")


def name_unknown(name: str) -> Refusal:
    """Nothing was ever built under a name."""
    return Refusal(404, "NAME_UNKNOWN", f"nothing was built as {name} yet", {"name": name})


def unauthorised(message: str, challenge: str) -> Refusal:
    """Credentials are missing or wrong; *challenge* says which would do."""
    return Refusal(401, "UNAUTHORIZED", message, headers=[("www-authenticate", challenge)])


def denied(message: str) -> Refusal:
    """The client is known, and may not."""
    return Refusal(403, "DENIED", message)


def range_not_satisfiable(size: int) -> Refusal:
    """A range lies outside the blob (RFC 9110, section 15.5.17)."""
    return Refusal(416, "SIZE_INVALID", f"the blob has {size} bytes", headers=[("content-range", f"bytes */{size}")])


def come_again(message: str, seconds: int) -> Refusal:
    """The client shall ask again; 429 is what clients wait for (decision 0022)."""
    return Refusal(429, "TOOMANYREQUESTS", message, {"retryAfter": seconds}, headers=[("retry-after", str(seconds))])


def internal_error(request_id: str) -> Refusal:
    """A mistake of the server; nothing of it is told but how to find it in the log."""
    return Refusal(500, "UNKNOWN", "the registry made a mistake; its log says which", {"request": request_id})


def refusal_of(error: NixeryError) -> Refusal:
    r"""Return what a client is told of an error of the library.

    >>> refusal_of(RevisionNotFound("there is no branch 'mian'", hint="did you mean main?")).body()
    b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"there is no such tag (did you mean main?)"}]}'
    """
    match error:
        case PackageError():
            return _package_error(error)
        case NixBuildError():
            return _not_built(error, "build-failed", derivation=error.derivation, log=list(error.log_tail))
        case NixTimeout():
            return _not_built(error, "timeout", seconds=error.seconds, log=list(error.log_tail))
        case EvaluationError():
            return _not_built(error, "evaluation-failed", log=list(error.trace))
        case RevisionNotFound() | InvalidTag():
            # the message names the folder or the repository of the operator; the hint is for the reader
            return manifest_unknown("there is no such tag" + (f" ({error.hint})" if error.hint else ""))
        case ObjectNotFound():
            return manifest_unknown(error)
        case InputError():
            # the grammar was checked before: it is the words that mean nothing
            return Refusal(404, "NAME_UNKNOWN", str(error))
        case StoreReadError():
            return _not_built(error, "unreadable")
        case Cancelled():
            return come_again(str(error), 5)
        case SourceError():
            return _unavailable("source")
        case StorageError():
            return _unavailable("storage")
    # no Nix, a broken layerer ...: the operator has to act, and finds the words in the log
    return _unavailable("server")


def _package_error(error: PackageError) -> Refusal:
    detail = {
        "kind": "package",
        "problems": [
            {
                "name": problem.name,
                "kind": problem.kind.value,
                "reason": redact(problem.reason),
                "candidates": list(problem.candidates),
            }
            for problem in error.problems
        ],
    }
    kinds = {problem.kind for problem in error.problems}
    if ProblemKind.FAILED in kinds:
        return Refusal(422, "MANIFEST_INVALID", str(error), detail)
    if kinds and kinds <= _FORBIDDEN:
        # how they would be allowed is the operator's business, and the hint says that
        return Refusal(403, "DENIED", error.message, detail)
    return Refusal(404, "MANIFEST_UNKNOWN", str(error), detail)


def _not_built(error: NixeryError, kind: str, **more: Any) -> Refusal:
    detail = {"kind": kind, **more}
    if "log" in detail:
        detail["log"] = [redact(line) for line in detail["log"]]
    return Refusal(422, "MANIFEST_INVALID", str(error), detail)


def _unavailable(kind: str) -> Refusal:
    # a message may name buckets and paths of the operator
    words = {
        "source": "the package source cannot be reached",
        "storage": "the storage of this registry does not answer",
        "server": "this registry cannot build images at the moment",
    }
    return Refusal(503, "UNAVAILABLE", words[kind], {"kind": kind}, headers=[("retry-after", "5")])

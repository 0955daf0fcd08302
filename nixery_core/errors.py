"""Every error that nixery_core raises, as one tree.

.. code-block:: text

    NixeryError
    ├── InputError                  the caller's words are wrong; raised before any work starts
    │   ├── InvalidName             an image name, package name or attribute path
    │   ├── InvalidTag              an image tag
    │   ├── InvalidPlatform         a Nix system or an OCI platform
    │   ├── InvalidDigest           a digest or a Nix hash
    │   ├── InvalidStorePath        a path that is not /nix/store/<hash>-<name>
    │   ├── InvalidClosure          references that do not close, cycles, missing roots
    │   ├── InvalidDocument         JSON that is not what its media type or format says
    │   ├── InvalidConfig           run configuration, custom files or builder options
    │   └── LayerBudgetError        a layer budget outside 1..125
    ├── SourceError                 a package source cannot be read or resolved
    │   └── RevisionNotFound        the source has no such branch, tag, commit or channel
    ├── NixError                    Nix was called and did not do what was asked
    │   ├── NixNotFound             there is no Nix to call
    │   ├── EvaluationError         the package set itself does not evaluate
    │   ├── PackageError            named packages cannot be used; lists every one of them
    │   ├── NixBuildError           a derivation failed to build
    │   └── NixTimeout              the call, or its silence, took too long
    ├── StoreReadError              the content of a store path cannot be read or archived
    │   └── BinaryCacheError        a binary cache is out of reach, or is not what it should be
    │       ├── PathsNotFound       store paths that no cache has; lists every one of them
    │       ├── NarInfosFailed      store paths that a cache cannot tell of; lists them
    │       └── UntrustedPath       nobody who is trusted vouches for a store path
    ├── LayerPlanError              a layerer returned something that is not a plan
    ├── StorageError                the storage refused or lost something
    │   ├── UnknownScheme           no backend is installed for the URL
    │   ├── InvalidKey              a storage key that could leave the store
    │   ├── ObjectNotFound          no object under that key
    │   ├── StorageFull             no space or quota left
    │   └── DigestMismatch          bytes do not hash to what was promised
    ├── WorkerError                 an executor that was passed in did not do its work
    ├── QueueFull                   a registry has so much to build or to plan that it takes no more
    ├── ClientGone                  the client of a registry left before it was answered
    └── Cancelled                   the caller cancelled the build

Every error pickles, so it survives a process pool; ``str()`` is one line for logs and
:meth:`NixeryError.diagnostics` is the text for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

from nixery_core._redact import redact


def _restore(cls: type[NixeryError], args: tuple[Any, ...], state: dict[str, Any]) -> NixeryError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


@attrs.define(slots=False)
class NixeryError(Exception):
    """Base of all errors of this library: what failed, on what, and what to do next."""

    message: str = attrs.field(converter=redact)
    """What failed and on which name, key or path; secrets are masked."""
    hint: str = attrs.field(default="", kw_only=True, converter=redact)
    """What the reader can do next; empty where there is nothing to say."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, dict(self.__dict__))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def diagnostics(self) -> str:
        """Return the text for a person: the message, details on lines of their own, the next step.

        >>> print(InvalidTag("tag 'a b' is not valid", hint="use letters and digits").diagnostics())
        tag 'a b' is not valid
          next: use letters and digits
        """
        lines = [self.message, *map(redact, self._details())]
        if self.hint:
            lines.append(f"next: {self.hint}")
        return "\n".join(lines).replace("\n", "\n  ")

    def _details(self) -> list[str]:
        return []


class InputError(NixeryError):
    """The caller's input is wrong; nothing was started."""


class InvalidName(InputError):
    """An image name, a package name or an attribute path is malformed."""


class InvalidTag(InputError):
    """An image tag is malformed, or its source cannot give tags a meaning."""


class InvalidPlatform(InputError):
    """A Nix system or an OCI platform is unknown."""


class InvalidDigest(InputError):
    """A text is not a digest or not a Nix hash."""


class InvalidStorePath(InputError):
    """A text is not a Nix store path."""


class InvalidClosure(InputError):
    """A set of store paths is not a closure."""


class InvalidDocument(InputError):
    """A JSON document does not have the form that its type promises."""


class InvalidConfig(InputError):
    """A run configuration, a custom file or a builder option is not usable."""


class LayerBudgetError(InputError):
    """A layer budget is outside 1..125."""


class SourceError(NixeryError):
    """A package source cannot be read or resolved."""


class RevisionNotFound(SourceError):
    """A package source has no such branch, tag, commit or channel."""


class NixError(NixeryError):
    """Nix was called and did not do what was asked."""


class NixNotFound(NixError):
    """There is no usable Nix on this machine."""

    def diagnostics(self) -> str:
        """Return one line: what is missing, and how to get it."""
        return str(self)


@attrs.define(slots=False)
class EvaluationError(NixError):
    """The package set itself does not evaluate."""

    trace: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    """The last lines that Nix printed, oldest first."""

    def _details(self) -> list[str]:
        return list(self.trace)


class ProblemKind(Enum):
    """Why a named package cannot be used."""

    NOT_FOUND = "not-found"
    AMBIGUOUS = "ambiguous"
    UNFREE = "unfree"
    BROKEN = "broken"
    INSECURE = "insecure"
    UNSUPPORTED_PLATFORM = "unsupported-platform"
    NOT_A_PACKAGE = "not-a-package"
    FAILED = "evaluation-failed"


@attrs.frozen
class PackageProblem:
    """One package that cannot be used, and why.

    >>> PackageProblem("htpo", ProblemKind.NOT_FOUND, candidates=("htop",)).describe()
    'htpo: not found; did you mean htop?'
    """

    name: str
    """The package as it was asked for."""
    kind: ProblemKind
    """The class of the problem."""
    reason: str = ""
    """What the package set says about it; empty where the kind says it all."""
    candidates: tuple[str, ...] = ()
    """Near or colliding attribute names."""

    def describe(self) -> str:
        """Return one line for a person."""
        text = f"{self.name}: {self.kind.value.replace('-', ' ')}"
        if self.reason:
            text += f": {self.reason}"
        if self.candidates and self.kind is ProblemKind.AMBIGUOUS:
            text += f"; it could be {', '.join(self.candidates)}"
        elif self.candidates:
            text += f"; did you mean {', '.join(self.candidates)}?"
        return text


@attrs.define(slots=False)
class PackageError(NixError):
    """Some named packages cannot be used; every one of them is listed at once."""

    problems: tuple[PackageProblem, ...] = attrs.field(default=(), kw_only=True)
    """One entry for each package that cannot be used, in the order asked."""

    def _details(self) -> list[str]:
        lines = [redact(problem.describe()) for problem in self.problems]
        return [] if lines == [self.message] else lines


@attrs.define(slots=False)
class NixBuildError(NixError):
    """A derivation failed to build."""

    derivation: str = attrs.field(default="", kw_only=True)
    """The store path of the derivation that failed first; empty where Nix did not say."""
    log_tail: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    """The last lines of its build log, oldest first."""

    def _details(self) -> list[str]:
        details = [f"derivation: {self.derivation}"] if self.derivation else []
        return details + [f"> {line}" for line in self.log_tail]


@attrs.define(slots=False)
class NixTimeout(NixError):
    """A Nix call, or its silence, took longer than allowed."""

    seconds: float = attrs.field(default=0.0, kw_only=True)
    """The limit that was reached."""
    log_tail: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    """The last lines that were printed before, oldest first."""

    def _details(self) -> list[str]:
        return [f"> {line}" for line in self.log_tail]


class StoreReadError(NixeryError):
    """The content of a store path cannot be read or cannot be put into an archive."""


class BinaryCacheError(StoreReadError):
    """A binary cache is out of reach, or it says what a binary cache may not say."""


@attrs.define(slots=False)
class PathsNotFound(BinaryCacheError):
    """No binary cache has some store paths; every one of them is listed at once."""

    missing: Mapping[str, str] = attrs.field(factory=dict, kw_only=True)
    """The store paths that are missing, each with a path that refers to it; empty for those that were asked for."""

    def _details(self) -> list[str]:
        return [f"{path}, which {by} refers to" if by else path for path, by in self.missing.items()]


@attrs.define(slots=False)
class NarInfosFailed(BinaryCacheError):
    """A binary cache told of many store paths, but cannot tell of some; they are listed at once."""

    reasons: Mapping[str, str] = attrs.field(factory=dict, kw_only=True)
    """Why the cache cannot tell, by store path."""

    def _details(self) -> list[str]:
        return [f"{path}: {reason}" for path, reason in self.reasons.items()]


class UntrustedPath(BinaryCacheError):
    """Nobody who is trusted vouches for a store path, or its content address is another one's."""


class LayerPlanError(NixeryError):
    """A layerer returned something that is not an exact partition within the budget."""


@attrs.define(slots=False)
class StorageError(NixeryError):
    """The storage refused, lost or cannot reach something."""

    key: str = attrs.field(default="", kw_only=True)
    """The storage key in question; empty where the whole store is meant."""


class UnknownScheme(StorageError):
    """No storage backend is installed for the scheme of a URL."""


class InvalidKey(StorageError):
    """A storage key is malformed or could leave the store."""


class ObjectNotFound(StorageError):
    """There is no object under a storage key."""


class StorageFull(StorageError):
    """The storage has no space or no quota left."""


class DigestMismatch(StorageError):
    """Bytes do not hash, or do not count, to what was promised."""


class WorkerError(NixeryError):
    """An executor did not do its work: a worker died, or could not take or give back a job."""


class QueueFull(NixeryError):
    """A registry has so much to build or to plan that it takes no more; nothing was begun."""


class ClientGone(NixeryError):
    """The client of a registry has closed its connection: there is nobody to answer."""


class Cancelled(NixeryError):
    """The caller cancelled the work; nothing was published."""


def nearest(name: str, known: Mapping[str, Any] | list[str] | tuple[str, ...], limit: int = 3) -> tuple[str, ...]:
    """Return the names in *known* that look most like *name*, best first.

    >>> nearest("htpo", ["htop", "git", "bash"])
    ('htop',)
    """
    import difflib

    folded = {candidate.lower(): candidate for candidate in known}
    return tuple(folded[match] for match in difflib.get_close_matches(name.lower(), list(folded), n=limit, cutoff=0.6))

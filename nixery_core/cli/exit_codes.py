"""What the command's exit codes mean."""

from __future__ import annotations

from enum import IntEnum

from nixery_core.errors import (
    BinaryCacheError,
    Cancelled,
    EvaluationError,
    InputError,
    NixBuildError,
    NixeryError,
    NixNotFound,
    NixTimeout,
    PackageError,
    SourceError,
    StorageError,
)


class ExitCode(IntEnum):
    """Exit codes of ``nixery-core``; they do not change their meaning."""

    OK = 0
    """Done."""
    FAILED = 1
    """An error that has no code of its own."""
    USAGE = 2
    """The arguments are wrong; nothing was started."""
    SOURCE = 3
    """The package source cannot be read, or has no such branch, tag, commit or channel."""
    PACKAGES = 4
    """Packages cannot be used (unknown, unfree, broken ...), or the package set does not evaluate."""
    BUILD = 5
    """A package failed to build."""
    TIMEOUT = 6
    """Nix took longer than allowed."""
    STORAGE = 7
    """The storage failed: unknown scheme, no access, no space, damaged content."""
    NO_NIX = 8
    """Nix is not installed."""
    DAMAGED = 9
    """fsck found something broken, whether or not it was repaired."""
    CACHE = 10
    """A binary cache is out of reach, or a path in it is missing, damaged or not trusted."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """Whoever read the output has gone."""
    TERMINATED = 143
    """SIGTERM."""


_BY_ERROR: tuple[tuple[type[NixeryError], ExitCode], ...] = (
    (InputError, ExitCode.USAGE),
    (SourceError, ExitCode.SOURCE),
    (PackageError, ExitCode.PACKAGES),
    (EvaluationError, ExitCode.PACKAGES),
    (NixBuildError, ExitCode.BUILD),
    (NixTimeout, ExitCode.TIMEOUT),
    (NixNotFound, ExitCode.NO_NIX),
    (StorageError, ExitCode.STORAGE),
    (BinaryCacheError, ExitCode.CACHE),
    (Cancelled, ExitCode.INTERRUPTED),
)


def exit_code_of(error: NixeryError) -> ExitCode:
    """Return the exit code for an error.

    >>> from nixery_core.errors import InvalidTag
    >>> exit_code_of(InvalidTag("no tag"))
    <ExitCode.USAGE: 2>
    """
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)

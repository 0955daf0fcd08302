"""What can be wrong with a storage."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import attrs


class ProblemKind(Enum):
    """A kind of problem: broken is what a client would notice, the others are left over from work that ended."""

    WRONG_BLOB = "wrong-blob"
    """A blob's bytes do not hash to its digest; it is removed, and the next build writes it again."""
    MISSING_BLOB = "missing-blob"
    """A name stands for an image that lacks a blob; the next build of it writes it again."""
    WRONG_MANIFEST = "wrong-manifest"
    """A name stands for something that is not a manifest that can be read."""
    WRONG_REF = "wrong-ref"
    """A name that stands for nothing; it is removed."""
    WRONG_INDEX = "wrong-index"
    """``index.json`` or ``oci-layout`` is not what the names make it; it is written again."""
    DANGLING_ENTRY = "dangling-entry"
    """A cache entry that speaks of a blob that is not there; a miss, and it is removed."""
    WRONG_ENTRY = "wrong-entry"
    """A cache entry that cannot be read; a miss, and it is removed."""
    OLD_STAGING = "old-staging"
    """An object that was on its way when its writer died; it is removed."""
    OLD_UPLOAD = "old-upload"
    """An upload in parts that was never completed; it is aborted."""
    OLD_MARK = "old-mark"
    """A pin, a sweep or a lease of a process that died; it is removed."""
    FOREIGN_KEY = "foreign-key"
    """An object that is none of ours; it is left alone."""

    @property
    def is_broken(self) -> bool:
        """Whether a client of the storage could notice it."""
        return self in _BROKEN


_BROKEN = {ProblemKind.WRONG_BLOB, ProblemKind.MISSING_BLOB, ProblemKind.WRONG_MANIFEST, ProblemKind.WRONG_REF}


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong."""

    kind: ProblemKind
    key: str
    """The object that is wrong, or that names what is."""
    detail: str
    """What is wrong, for a person."""
    repaired: bool = False
    """Whether it was put right, or removed."""


@attrs.frozen(kw_only=True)
class FsckReport:
    """What a check of a storage found."""

    objects: int
    """Objects that were looked at."""
    blobs: int
    """Blobs among them."""
    bytes_read: int
    """Bytes of blobs that were read and hashed; 0 where they were not."""
    problems: tuple[Problem, ...]

    @property
    def broken(self) -> tuple[Problem, ...]:
        """Return the problems that a client could notice, repaired or not."""
        return tuple(problem for problem in self.problems if problem.kind.is_broken)

    @property
    def leftovers(self) -> tuple[Problem, ...]:
        """Return the other problems: they cost space or time, and nothing else."""
        return tuple(problem for problem in self.problems if not problem.kind.is_broken)


@attrs.frozen(kw_only=True)
class KeepingProgress:
    """How far a check or a collection is."""

    stage: str
    """What is looked at: ``blobs``, ``names`` ..."""
    objects: int
    """How many of them were looked at."""
    size: int = 0
    """Their bytes, where they were read or removed."""


ProgressCallback = Callable[[KeepingProgress], None]
"""What users pass in to follow; called from the thread that called."""


def ignore_progress(progress: KeepingProgress) -> None:
    """Do nothing with it: the default callback."""

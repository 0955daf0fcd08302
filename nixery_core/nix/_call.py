"""What the parts of this package ask of the Nix command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nixery_core.cancellation import Cancellation
from nixery_core.nix._log import NixLog
from nixery_core.nix._process import Deadline, Finished


class Call(Protocol):
    """Runs one tool of Nix."""

    def __call__(
        self,
        tool: str,
        arguments: Sequence[str],
        *,
        log: NixLog,
        deadline: Deadline,
        cancellation: Cancellation,
        max_silent: float | None = None,
    ) -> Finished:
        """Run ``<tool> <arguments>`` with the store and the options of the caller."""
        ...

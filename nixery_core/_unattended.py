"""How child processes are called when no person is there to answer them."""

from __future__ import annotations

import os
from collections.abc import Mapping


def unattended_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with messages in English and no question asked, and *extra* above it."""
    return {
        **os.environ,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh") + " -oBatchMode=yes",
        **(extra or {}),
    }

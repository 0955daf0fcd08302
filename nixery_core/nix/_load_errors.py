"""Tell why a package set could not be loaded: from how far nix/load.nix came, and from Nix's words."""

from __future__ import annotations

import signal

from nixery_core._redact import redact
from nixery_core.errors import EvaluationError, NixError, RevisionNotFound, SourceError
from nixery_core.nix._log import NixLog
from nixery_core.sources import Pin

_NO_REVISION = (
    "couldn't find remote ref",
    "cannot find git revision",
    "not our ref",
    "unadvertised object",
    "revspec",
    "has wrong length for hash",
    "no match for id",
    "object not found",
    "bad object",
)
# Nix goes on to look for the commit in a repository that it could not read
_UNREADABLE = (
    "could not read from remote repository",
    "does not appear to be a git repository",
    "unable to access",
    "authentication failed",
    "failed to connect",
)
_MAX_REASON = 400


def first_paragraph(log: NixLog, returncode: int) -> str:
    """Return what Nix gave as the reason of its last error, on one line."""
    if log.errors:
        text = log.errors[-1].split("\n\n")[0]
        return " ".join(text.split())[:_MAX_REASON]
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = str(-returncode)
        return f"Nix was killed by {name}"
    tail = log.tail()
    return tail[-1].removeprefix("error: ") if tail else f"Nix ended with exit code {returncode} and no word"


def setup_hint(text: str) -> str:
    """Return what to do about a Nix that does not fit the machine; empty where that is not the problem."""
    if "build-users-group" in text:
        return 'Nix runs as root without build users: Nix(options={"build-users-group": ""})'
    if "/nix" in text and ("Permission denied" in text or "Operation not permitted" in text):
        return 'an ordinary user needs the Nix daemon, or a store of their own: Nix(store="/path/of/yours")'
    if "No space left" in text or "Disk quota" in text:
        return "free some space in the Nix store"
    return ""


def load_error(pin: Pin, log: NixLog, returncode: int) -> NixError | SourceError:
    """Return the error for a call that ended before the package set was there."""
    reason = first_paragraph(log, returncode)
    if "started" not in log.stages:
        return EvaluationError(f"Nix cannot evaluate: {reason}", trace=log.tail(), hint=setup_hint(reason))
    if "fetched" not in log.stages:
        return _source_error(pin, log, reason)
    hint = setup_hint(reason)
    if "default.nix" in reason and "No such file" in reason:
        hint = "a package set is a folder with a default.nix"
    return EvaluationError(f"the package set {pin.describe()} does not evaluate: {reason}", trace=log.tail(), hint=hint)


def _source_error(pin: Pin, log: NixLog, reason: str) -> SourceError:
    # git speaks for itself, before Nix says that git failed
    said = [line for line in log.tail() if line.startswith(("fatal:", "error: "))] or [reason]
    words = " ".join([*log.tail(), reason]).lower()
    unreadable = any(sign in words for sign in _UNREADABLE)
    if pin.fetch["type"] == "git" and not unreadable and any(sign in words for sign in _NO_REVISION):
        return RevisionNotFound(
            f"{redact(pin.url)} has no revision {pin.revision}: {said[0]}",
            hint="push the commit to a branch, or name another",
        )
    detail = reason if said[0].removeprefix("error: ") in reason else f"{said[0]}; {reason}"
    return SourceError(
        f"the package source {pin.describe()} cannot be fetched: {detail}", hint="check the network and the address"
    )

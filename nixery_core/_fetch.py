"""What package sources ask of the network: one small text, and the refs of a git repository."""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nixery_core._redact import redact
from nixery_core._unattended import unattended_environment
from nixery_core.errors import RevisionNotFound, SourceError

TIMEOUT = 60.0
"""Longest time for one question, seconds."""
_MAX_TEXT = 1 << 20
_PEELED = "^{}"


def fetch_text(url: str, *, missing: str) -> str:
    """Return the small text at *url*; raises RevisionNotFound (*missing*, for a 404) or SourceError."""
    raw = _fetch(url, {})
    if raw is None:
        raise RevisionNotFound(f"{missing}: {redact(url)} is not found", hint="check its spelling")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{redact(url)} cannot be read: {error}", hint="check the network and the address") from error


def fetch_json(url: str) -> Any:
    """Return the small JSON document at *url*, or None where there is none; raises SourceError."""
    raw = _fetch(url, {"Accept": "application/json"})
    if raw is None:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{redact(url)} is not JSON: {error}", hint="check the address") from None


def _fetch(url: str, headers: Mapping[str, str]) -> bytes | None:
    if not url.startswith(("https://", "http://")):
        raise SourceError(f"{redact(url)} is not a web address", hint="write https://...")
    try:
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 (the scheme was checked)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 (the scheme was checked)
            raw: bytes = response.read(_MAX_TEXT)
            return raw
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise SourceError(f"{redact(url)} answered {error.code} {error.reason}", hint="try again later") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise SourceError(
            f"{redact(url)} cannot be read: {reason}", hint="check the network and the address"
        ) from error


@attrs.frozen
class GitRefs:
    """The refs of a remote repository."""

    commits: Mapping[str, str]
    """Commit by the full name of the ref; of an annotated tag, what it points to."""
    head: str | None
    """The branch that HEAD names; None where it names none or was not asked for."""


def git_refs(url: str, names: Sequence[str]) -> GitRefs:
    """Ask a remote repository for the refs *names*, or for all of them; raises SourceError."""
    patterns = [pattern for name in names for pattern in (name, f"{name}{_PEELED}")]
    try:
        result = subprocess.run(
            ["git", "ls-remote", "--quiet", "--symref", "--", url, *patterns],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env=unattended_environment(),
        )
    except FileNotFoundError as error:
        raise SourceError("git is not installed", hint="install git; it resolves branches and tags") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{redact(url)} did not answer git within {TIMEOUT:.0f} s", hint="check the network"
        ) from error
    if result.returncode != 0:
        reason = result.stderr.decode(errors="replace").strip().splitlines() or [f"git exits with {result.returncode}"]
        raise SourceError(f"git cannot read {redact(url)}: {reason[0]}", hint="check the address and the access rights")
    return _parse_refs(result.stdout.decode(errors="replace"), names)


def _parse_refs(text: str, names: Sequence[str]) -> GitRefs:
    commits: dict[str, str] = {}
    head = None
    for line in text.splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: "):
            head = value.removeprefix("ref: ") if name == "HEAD" else head
        # a pattern also matches the ends of longer names
        elif not names or name.removesuffix(_PEELED) in names:
            commits[name] = value
    peeled = {name.removesuffix(_PEELED): commit for name, commit in commits.items() if name.endswith(_PEELED)}
    return GitRefs({name: commit for name, commit in (commits | peeled).items() if not name.endswith(_PEELED)}, head)

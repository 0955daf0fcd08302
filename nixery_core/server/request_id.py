"""The identity of a request, for whoever looks for it in a log."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from nixery_core.server.replies import Scope, header

HEADER = "x-request-id"
"""Taken from the client, or from the proxy before us, and given back."""

SCOPE_KEY = "nixery_core.request_id"

_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_current: ContextVar[str] = ContextVar("nixery_core_request_id", default="")


def request_id(scope: Scope) -> str:
    """Return the identity of a request: what the client says, unless it would spoil a log; else a new one.

    >>> request_id({"headers": [(b"x-request-id", b"abc-1")]})
    'abc-1'
    >>> len(request_id({"headers": [(b"x-request-id", b"two words")]}))
    32
    """
    known = scope.get(SCOPE_KEY)
    if known is None:
        given = header(scope, HEADER.encode())
        known = given if given is not None and _ACCEPTED.fullmatch(given) else uuid.uuid4().hex
        scope[SCOPE_KEY] = known
    identity: str = known
    return identity


def current_request_id() -> str:
    """Return the identity of the request that this task or thread works for; empty where it works for none."""
    return _current.get()


def enter_request(identity: str) -> None:
    """Work for a request from here on; it ends with the task."""
    _current.set(identity)

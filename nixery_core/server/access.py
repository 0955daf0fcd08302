"""Who may pull what: the hook that an embedder passes in, and helpers for the two ways of clients.

Source: RFC 7235, RFC 7617 (Basic), RFC 6750 (Bearer), and Docker's "Token Authentication
Specification", which is what docker, podman, skopeo and containerd speak.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

import attrs

from nixery_core.errors import InvalidConfig
from nixery_core.server.refusals import denied, unauthorised
from nixery_core.server.replies import Scope, header
from nixery_core.server.targets import Endpoint, Target


@attrs.frozen
class AccessRequest:
    """What the hook decides about."""

    method: str
    """``GET`` or ``HEAD``."""
    endpoint: Endpoint
    name: str
    """The repository; empty for ``/v2/``, where clients try their credentials."""
    reference: str
    """A tag or a digest; empty where there is none."""
    authorization: str | None
    """The value of the header, as the client sent it: a secret."""
    scope: Scope = attrs.field(repr=False, eq=False)
    """The ASGI scope, for whatever else matters: addresses, client certificates, headers."""


@attrs.frozen
class Allowed:
    """Go ahead."""

    bind: bool = False
    """Whether a digest is served only where it belongs to an image of the name that is asked for."""


@attrs.frozen
class Challenge:
    """Credentials are missing or wrong: 401."""

    header: str
    """The value of ``WWW-Authenticate``."""
    message: str = "credentials are needed"


@attrs.frozen
class Denied:
    """The client is known, and may not: 403."""

    message: str = "access is denied"


Decision: TypeAlias = "Allowed | Challenge | Denied"


class Authorise(Protocol):
    """Decides on each request; any function with this signature will do, async or not.

    One that is not async must not wait for anything: it runs in the event loop.
    """

    def __call__(self, request: AccessRequest, /) -> Decision | Awaitable[Decision]:
        """Return what becomes of *request*."""
        ...


async def check_access(authorise: Authorise | None, scope: Scope, target: Target) -> Allowed:
    """Return what the hook allows; raises Refusal."""
    if authorise is None:
        return Allowed()
    answer = authorise(
        AccessRequest(
            method=scope["method"],
            endpoint=target.endpoint,
            name=target.name,
            reference=str(target.digest or target.tag),
            authorization=header(scope, b"authorization"),
            scope=scope,
        )
    )
    decision = await answer if inspect.isawaitable(answer) else answer
    if isinstance(decision, Challenge):
        raise unauthorised(decision.message, decision.header)
    if isinstance(decision, Denied):
        raise denied(decision.message)
    assert isinstance(decision, Allowed)
    return decision


def basic_auth(users: Mapping[str, str], *, realm: str = "nixery", bind: bool = False) -> Authorise:
    """Return a hook that lets in who knows one of the *users* with its password.

    For other stores of passwords write a hook of your own and use :func:`basic_credentials`.
    """
    challenge = f"Basic {_parameters(realm=realm)}"
    known = {name.encode(): password.encode() for name, password in users.items()}

    def authorise(request: AccessRequest) -> Decision:
        given = basic_credentials(request.authorization)
        if given is None:
            return Challenge(challenge)
        name, password = given[0].encode(), given[1].encode()
        # the same time for a wrong name and a wrong password
        right = hmac.compare_digest(known.get(name, b"\0"), password)
        return Allowed(bind=bind) if right and name in known else Challenge(challenge, "wrong user or password")

    return authorise


def basic_credentials(authorization: str | None) -> tuple[str, str] | None:
    """Return user and password of an ``Authorization`` header, or None where it holds none.

    >>> basic_credentials("Basic bWU6aHVudGVyMg==")
    ('me', 'hunter2')
    """
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


TokenCheck = Callable[[str, AccessRequest], "Decision | Awaitable[Decision] | None"]
"""Judges a bearer token; None stands for one that is not valid."""


def bearer_auth(check: TokenCheck, *, realm: str, service: str) -> Authorise:
    """Return a hook that sends clients to a token server, and has *check* judge the tokens they bring.

    Args:
        check: Gets the token, and what is asked for.
        realm: URL of the token server; clients ask it for ``?service=..&scope=repository:<name>:pull``.
        service: What the token server calls this registry.

    Raises:
        InvalidConfig: If *realm* is not a URL.
    """
    if not realm.startswith(("http://", "https://")):
        raise InvalidConfig(f"{realm!r} is not the URL of a token server", hint="write https://auth.example.org/token")

    def challenge(request: AccessRequest, **error: str) -> Challenge:
        scope = {"scope": f"repository:{request.name}:pull"} if request.name else {}
        return Challenge(f"Bearer {_parameters(realm=realm, service=service, **scope, **error)}")

    async def authorise(request: AccessRequest) -> Decision:
        scheme, _, token = (request.authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return challenge(request)
        answer = check(token.strip(), request)
        decision = await answer if inspect.isawaitable(answer) else answer
        return decision or challenge(request, error="invalid_token")

    return authorise


def _parameters(**parameters: str) -> str:
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in parameters.items()}
    return ",".join(f'{name}="{value}"' for name, value in quoted.items())

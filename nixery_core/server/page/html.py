"""From templates to answers: escaping, headers that keep strangers out, and forms.

Templates are Jinja's: it escapes whatever is put in, so that no log line becomes markup by
somebody's forgetting it; and a name that is misspelt is an error, not an empty place.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup

from nixery_core.server.refusals import Refusal, denied, no_such_route
from nixery_core.server.replies import Receive, Scope, Send, header, raw_headers, reply

MOST_FORM = 64 << 10
"""Most bytes of a form."""

_SECURITY = (
    (
        "content-security-policy",
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
)
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


def bytes_text(count: float) -> str:
    """Return a size for a person, in decimal units as registries show it.

    >>> bytes_text(999), bytes_text(38_000_000)
    ('999 B', '38.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """Return a duration for a person.

    >>> duration_text(0.34), duration_text(75), duration_text(7300)
    ('0.3 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def iso_time(seconds: float) -> str:
    """Return a time since the epoch as programs read it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def clock_time(seconds: float) -> str:
    """Return a time since the epoch for a person."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S UTC")


def breakable(text: str) -> Markup:
    """Return a text that may be broken behind each slash, escaped.

    >>> breakable("a/<b>")
    Markup('a/<wbr>&lt;b&gt;')
    """
    return Markup("/<wbr>").join(text.split("/"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nixery_core.server.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": bytes_text,
        "duration": duration_text,
        "iso": iso_time,
        "clock": clock_time,
        "breakable": breakable,
        "urlquery": urllib.parse.urlencode,
    }
    environment.globals["static"] = static_path
    return environment


async def send_page(
    scope: Scope, send: Send, template: str, values: Mapping[str, Any], *, status: int = 200, headers: Any = ()
) -> None:
    """Answer with a template."""
    base = scope.get("root_path", "").rstrip("/")
    body = _environment().get_template(template).render({"base": base, **values}).encode()
    await _send(scope, send, status, body, "text/html; charset=utf-8", ("cache-control", "no-store"), *headers)


async def send_json(scope: Scope, send: Send, body: bytes) -> None:
    """Answer with JSON that scripts of the page read."""
    await _send(scope, send, 200, body, "application/json", ("cache-control", "private, max-age=60"))


async def see_other(scope: Scope, send: Send, path: str) -> None:
    """Send the browser to another page of ours."""
    where = scope.get("root_path", "").rstrip("/") + path
    await _send(scope, send, 303, b"", "text/html; charset=utf-8", ("location", where), ("cache-control", "no-store"))


async def send_static(scope: Scope, send: Send, name: str) -> None:
    """Answer with a file of the page; its address changes with its content."""
    files = _static()
    if name not in files:
        raise no_such_route(scope["path"])
    body = files[name]
    await _send(
        scope,
        send,
        200,
        body,
        _TYPES[name.rpartition(".")[2]],
        ("cache-control", "public, max-age=31536000, immutable"),
    )


def static_path(name: str) -> str:
    """Return the path of a file of the page."""
    return f"/ui/static/{hashlib.sha256(_static()[name]).hexdigest()[:16]}/{name}"


@functools.cache
def _static() -> dict[str, bytes]:
    folder = importlib.resources.files("nixery_core.server.page") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def query_of(scope: Scope) -> dict[str, list[str]]:
    """Return the parameters of the address; raises Refusal."""
    return _parameters(scope.get("query_string", b""))


async def form_of(scope: Scope, receive: Receive) -> dict[str, list[str]]:
    """Return the fields of a form that this page has sent; raises Refusal."""
    # browsers say where a form comes from: those of other sites start no work here
    if header(scope, b"sec-fetch-site") not in (None, "same-origin", "none"):
        raise denied("this form was sent by another site")
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return {}
        body += message.get("body", b"")
        if len(body) > MOST_FORM:
            raise Refusal(413, "SIZE_INVALID", f"a form has at most {MOST_FORM} bytes")
        if not message.get("more_body", False):
            return _parameters(body)


def _parameters(raw: bytes) -> dict[str, list[str]]:
    try:
        return urllib.parse.parse_qs(raw.decode("latin-1"), max_num_fields=500)
    except ValueError:
        raise Refusal(400, "UNSUPPORTED", "there are too many parameters") from None


async def _send(
    scope: Scope, send: Send, status: int, body: bytes, content_type: str, *headers: tuple[str, str]
) -> None:
    lines = [("content-type", content_type), ("content-length", str(len(body))), *headers, *_SECURITY]
    await reply(send, status, raw_headers(lines), body, head=scope["method"] == "HEAD")

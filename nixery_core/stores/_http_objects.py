"""The files of a binary cache over HTTP: few connections that are kept, and patience with what fails for a moment."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from nixery_core._redact import redact
from nixery_core.errors import BinaryCacheError, InvalidConfig
from nixery_core.stores._objects import INFO, PIECE, checked_size, not_there, outcome

try:
    import urllib3
    from urllib3.exceptions import HTTPError, MaxRetryError
except ImportError:  # pragma: no cover - the session "dist" has no urllib3
    urllib3 = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_MISSING = frozenset((404, 410))
# S3 says so of what is not there to whoever may not list the bucket; Nix takes it for "not there" too
_MISSING_OR_FORBIDDEN = _MISSING | {403}
_TRANSIENT = frozenset((408, 429, 500, 502, 503, 504))
_MOST_REDIRECTS = 5
_LONGEST_PAUSE = 20
"""Longest pause before another try, seconds, whatever the cache asks for."""


class HttpObjects:
    """A cache behind a web server.

    Args:
        url: ``http(s)://``; a query is sent with every request, user and password by basic authentication.
        options: ``headers``, a mapping sent with every request to the cache itself.
        timeout: Longest silence of the other side, seconds.
        retries: How often a request is repeated that failed for a reason that may pass.
        connections: Most that are kept.
    """

    def __init__(self, url: str, options: Mapping[str, Any], *, timeout: float, retries: int, connections: int) -> None:
        if urllib3 is None:
            raise InvalidConfig(
                f"the binary cache {redact(url)} needs the package urllib3",
                hint="pip install 'nixery-core[cache]'",
            )
        parts = urlsplit(url)
        userinfo, at, host = parts.netloc.rpartition("@")
        self._base = parts._replace(netloc=host, path=parts.path.rstrip("/") + "/", fragment="")
        self._where = redact(urlunsplit(self._base))
        self._headers = {"User-Agent": "nixery-core", **_headers(options, url)}
        if at:
            self._headers |= urllib3.make_headers(basic_auth=unquote(userinfo))
        self._retries = urllib3.Retry(
            total=None,
            connect=retries,
            read=retries,
            status=retries,
            other=retries,
            redirect=_MOST_REDIRECTS,
            status_forcelist=_TRANSIENT,
            backoff_factor=0.1,
            backoff_jitter=0.1,
            backoff_max=_LONGEST_PAUSE,
            retry_after_max=_LONGEST_PAUSE,
            raise_on_status=False,
        )
        self._attempts = retries + 1
        self._pool = _pool(self._base.scheme, host, urllib3.Timeout(connect=timeout, read=timeout), connections)

    def get(self, name: str, most: int) -> bytes | None:
        """Return a file of at most *most* bytes whole, or None where there is none; raises BinaryCacheError."""
        url, attempt = self._url(name), 1
        while True:
            response = self._ask(url)
            try:
                if response.status == 200:
                    data = response.read(most + 1)
                    return checked_size(data, most, redact(url))
                # the answer to this one tells a wrong password from a missing file
                if response.status in (_MISSING if name == INFO else _MISSING_OR_FORBIDDEN):
                    return None
                raise _refused(url, response)
            except HTTPError as error:
                # the body broke off; urllib3 repeats only what fails before it
                if attempt >= self._attempts:
                    raise _failed(url, error) from error
                attempt += 1
            finally:
                _release(response)

    @property
    def batch(self) -> None:
        """Say that threads are the way."""
        return None

    def get_many(self, names: Sequence[str]) -> list[bytes | BinaryCacheError | None]:
        """Return small files in the order asked, None for those that are not there, errors for those that fail."""
        return [outcome(self, name) for name in names]

    def stream(self, name: str) -> Iterator[bytes]:
        """Give a file in pieces; raises BinaryCacheError, also where there is none.

        A connection that breaks is opened again, and asked for the rest.
        """
        url, done, failures = self._url(name), 0, 0
        while True:
            response = self._ask(url, {"Range": f"bytes={done}-"} if done else {})
            try:
                skip = self._check_stream(url, response, done)
                while piece := response.read(PIECE):
                    if skip >= len(piece):
                        skip -= len(piece)
                        continue
                    piece, skip = piece[skip:], 0
                    done += len(piece)
                    # what makes progress may break as often as it likes
                    failures = 0
                    yield piece
            except HTTPError as error:
                failures += 1
                if failures >= self._attempts or response.headers.get("Content-Encoding"):
                    raise _failed(url, error) from error
            else:
                return
            finally:
                _release(response)

    def _check_stream(self, url: str, response: BaseHTTPResponse, done: int) -> int:
        """Return how many bytes of *response* are known already."""
        if response.status == 200:
            return done
        if response.status == 206 and done and response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            return 0
        if response.status in _MISSING:
            raise not_there(redact(url))
        raise _refused(url, response)

    def _ask(self, url: str, headers: Mapping[str, str] | None = None) -> BaseHTTPResponse:
        own = url.startswith(f"{self._base.scheme}://{self._base.netloc}/")
        sent = {**(self._headers if own else {}), **(headers or {})}
        try:
            return self._pool.request("GET", url, headers=sent, retries=self._retries, preload_content=False)
        except HTTPError as error:
            raise _failed(url, error) from error

    def _url(self, name: str) -> str:
        if name.startswith(("http://", "https://")):
            return name
        # some caches name an archive by a query: nar/....nar?hash=...
        path, _, query = name.partition("?")
        query = "&".join(filter(None, (self._base.query, query)))
        return urlunsplit(self._base._replace(path=self._base.path + path, query=query))


def _headers(options: Mapping[str, Any], url: str) -> dict[str, str]:
    headers = options.get("headers", {})
    if set(options) - {"headers"} or not isinstance(headers, Mapping):
        raise InvalidConfig(
            f"the binary cache {redact(url)} takes one option, the mapping headers",
            hint='options={"headers": {"Authorization": ...}}',
        )
    return {str(name): str(value) for name, value in headers.items()}


def _pool(scheme: str, host: str, timeout: urllib3.Timeout, connections: int) -> urllib3.PoolManager:
    # the proxy that the environment names, as for everything that urllib fetches
    proxy = urllib.request.getproxies().get(scheme)
    if proxy is None or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager(maxsize=connections, timeout=timeout)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    userinfo, at, _ = parts.netloc.rpartition("@")
    headers = urllib3.make_headers(proxy_basic_auth=unquote(userinfo)) if at else None
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return urllib3.ProxyManager(address, maxsize=connections, timeout=timeout, proxy_headers=headers)


def _release(response: BaseHTTPResponse) -> None:
    # a connection with an unread rest cannot be used again; one without is back in the pool already
    response.close()
    response.release_conn()


def _refused(url: str, response: BaseHTTPResponse) -> BinaryCacheError:
    if response.status in (401, 403, 407):
        hint = "check the user and password, or the headers, that the cache is given"
    else:
        hint = "try again later, or name another cache"
    return BinaryCacheError(f"{redact(url)} answered {response.status} {response.reason or ''}".rstrip(), hint=hint)


def _failed(url: str, error: HTTPError) -> BinaryCacheError:
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    # urllib3 puts objects in front of its words
    words = str(cause).partition(">: ")[2] or str(cause)
    return BinaryCacheError(f"{redact(url)} cannot be read: {words}", hint="check the network and the address")

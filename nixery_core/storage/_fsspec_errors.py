"""What file systems raise, in our words; every one has a library with exceptions of its own."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError, StorageFull
from nixery_core.storage._files import storage_error
from nixery_core.storage._fsspec_traits import Traits

NO_CONTAINER = "create the container, or check its name and the account"
_READ_ONLY = "it can be read, but not be written to"
_BUSY = "the storage is busy: run it again later"
_UNREACHABLE = "check the address of the storage and whether its server runs, or run it again later"
# of a server that takes no PUT (RFC 9110)
_NO_METHOD = (405, 501)
_NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
_REFUSED = re.compile("Authentic|Credential")
_BROKEN = re.compile("Connection|Disconnected|Timeout")
_SECRET = re.compile(
    r"(?:secret|token|password|passwd|passphrase|key|credentials?|sas|signature|connection_string)$", re.IGNORECASE
)


@contextlib.contextmanager
def mapped(key: str, url: str, traits: Traits, secrets: Sequence[str]) -> Iterator[None]:
    """Turn whatever a file system raises into StorageErrors that name *key* and *url*, and none of *secrets*."""
    try:
        yield
    except (StorageError, InvalidConfig):
        raise
    except FileNotFoundError as error:
        raise ObjectNotFound(f"there is no object {key} in {url}", key=key) from error
    except OSError as error:
        text = _masked(error.strerror or str(error) or type(error).__name__, secrets)
        if error.errno is None and "reading or writing" in text:
            # an archive of fsspec is open for one of them
            raise StorageError(f"{key} in {url}: {text}", key=key, hint=_READ_ONLY) from error
        raise storage_error(key, url, OSError(error.errno, text)) from error
    except Exception as error:
        kind = StorageFull if status_of(error) == 507 else StorageError
        text = _masked(_reason(error), secrets)
        raise kind(f"{key or 'the storage'} in {url}: {text}", key=key, hint=_hint(error, traits)) from error


def secrets_of(options: Mapping[str, Any]) -> list[str]:
    """Return the values of options, by their names, that no message may show.

    >>> secrets_of({"account_name": "a", "connection_string": "AccountName=a;AccountKey=k3y"})
    ['AccountName=a;AccountKey=k3y', 'k3y']
    """
    found: set[str] = set()
    for name, value in options.items():
        if isinstance(value, dict):
            found.update(secrets_of(value))
        elif isinstance(value, str) and _SECRET.search(name):
            found.add(value)
            # a connection string holds names and values, which may be shown one by one
            pairs = (pair.partition("=") for pair in value.split(";"))
            found.update(text for part, _, text in pairs if _SECRET.search(part))
    return sorted(found - {""}, key=len, reverse=True)


def status_of(error: BaseException) -> int:
    """Return the HTTP status that *error*, or what it comes from, tells of; 0 where there is none."""
    for link in _chain(error):
        for name in ("status_code", "status"):
            status = getattr(link, name, None)
            if isinstance(status, int):
                return status
    return 0


def _hint(error: BaseException, traits: Traits) -> str:
    status = status_of(error)
    refused = status in (401, 403) or any(_REFUSED.search(type(link).__name__) for link in _chain(error))
    if refused and traits.credentials:
        return traits.credentials
    if isinstance(error, NotImplementedError) or status in _NO_METHOD or (status == 403 and not traits.credentials):
        return _READ_ONLY
    if status == 404 and traits.container:
        return NO_CONTAINER
    if status == 507:
        return "free some space or raise the quota, then run it again"
    if status == 429 or status >= 500:
        return _BUSY
    if not status and any(isinstance(link, _NETWORK) or _BROKEN.search(type(link).__name__) for link in _chain(error)):
        return _UNREACHABLE
    # options that are no credentials are noticed when the storage is opened
    return traits.credentials if isinstance(error, ValueError) else ""


def _reason(error: BaseException) -> str:
    # some libraries append the whole answer of the server, line by line
    line = next(iter(str(error).splitlines()), "")
    for link in _chain(error):
        code = getattr(link, "error_code", None)
        code = getattr(code, "value", code)
        if isinstance(code, str) and code not in line:
            line = f"{line} ({code})"
    return f"{type(error).__name__}: {line}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _masked(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text

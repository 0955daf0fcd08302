"""What GCS and its library say when something fails, in our words."""

from __future__ import annotations

import json

import aiohttp
from google.auth import exceptions as auth

from nixery_core._redact import redact
from nixery_core.errors import ObjectNotFound, StorageError, StorageFull

# https://cloud.google.com/storage/docs/retry-strategy
_BUSY = {408, 429, 500, 502, 503, 504}
_BUSY_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "backendError"}
_FULL_REASONS = {"quotaExceeded", "storageQuotaExceeded"}
_CREDENTIALS = "check the credentials: the option token, GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth"


class Refused(Exception):
    """GCS answered with an error; never leaves this package."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.reason, self.said = _read(body)
        super().__init__(f"{status} {self.said or self.reason}".strip())


def _read(body: bytes) -> tuple[str, str]:
    """Return the reason and the message of an answer (JSON API, "HTTP status and error codes")."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)["error"]
        if isinstance(error, str):
            return error, str(json.loads(text).get("error_description", ""))
        reasons = [str(one.get("reason", "")) for one in error.get("errors", ())]
        return (reasons or [""])[0], str(error.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", text[:200]


def is_status(error: BaseException, *statuses: int) -> bool:
    """Return whether GCS answered with one of *statuses*."""
    return isinstance(error, Refused) and error.status in statuses


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed in a moment."""
    if isinstance(error, Refused):
        return error.status in _BUSY or error.reason in _BUSY_REASONS
    if isinstance(error, auth.GoogleAuthError):
        return bool(getattr(error, "retryable", False)) or isinstance(error, auth.TransportError)
    # a name that is not known, or a certificate that is not trusted, will not be in a moment
    return isinstance(error, aiohttp.ClientError | TimeoutError | ConnectionError) and not isinstance(
        error, aiohttp.ClientConnectorError
    )


def is_unreachable(error: BaseException) -> bool:
    """Return whether nobody answers at the address."""
    return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError
    )


def mapped(error: Exception, *, key: str, url: str, bucket: str, secrets: list[str]) -> StorageError:
    """Return the StorageError for *error*, with what to do next, and without *secrets*."""
    if isinstance(error, StorageError):
        return error
    kind, hint, reason = _explained(error, bucket)
    for secret in secrets:
        reason = reason.replace(secret, "***")
    return kind(f"{key or 'the storage'} in {redact(url)}: {reason}", key=key, hint=hint)


def no_bucket(bucket: str) -> tuple[str, str]:
    """Return what is said, and what to do, where there is no bucket."""
    return f"there is no bucket {bucket}", "create the bucket, or check its name and the project"


def _explained(error: Exception, bucket: str) -> tuple[type[StorageError], str, str]:
    reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    if isinstance(error, auth.GoogleAuthError):
        clock = "iat" in reason or "timeframe" in reason
        hint = "set the clock of this machine: tokens are good for an hour" if clock else _CREDENTIALS
        return StorageError, hint, reason
    if isinstance(error, Refused):
        return _refused(error, reason, bucket)
    if is_unreachable(error):
        return StorageError, "check endpoint_url and the network", reason
    if isinstance(error, aiohttp.ClientSSLError):
        return StorageError, "check the certificate of the endpoint", reason
    return StorageError, "the connection is bad: run it again later" if is_transient(error) else "", reason


def _refused(error: Refused, reason: str, bucket: str) -> tuple[type[StorageError], str, str]:
    if error.status == 404:
        if "bucket" in error.said:
            said, hint = no_bucket(bucket)
            return StorageError, hint, said
        return ObjectNotFound, "", "there is no such object"
    if error.reason in _FULL_REASONS:
        return StorageFull, "free some space or raise the quota, then run it again", reason
    if is_transient(error):
        return StorageError, "the storage is busy: run it again later", reason
    if error.status == 401:
        return StorageError, _CREDENTIALS, reason
    if error.status == 403:
        return StorageError, f"give the account the role roles/storage.objectUser on {bucket}", reason
    return StorageError, "", reason

"""What S3 and its library say when something fails, in our words."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import ClientError as HttpError
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.exceptions import FSTimeoutError

from nixery_core._redact import redact
from nixery_core.errors import ObjectNotFound, StorageError, StorageFull

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BUSY = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
}
_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301", "307"}
_FULL = {"InsufficientCapacity", "QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"}
_NO_KEY = {"NoSuchKey", "404", "NotFound"}
_BROKEN = (
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
    FSTimeoutError,
    HttpError,
    ConnectionError,
    TimeoutError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
)


def code(error: BaseException) -> str:
    """Return the error code of S3, such as ``NoSuchKey``; empty for what S3 did not say."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def status(error: BaseException) -> int:
    """Return the HTTP status of what S3 said, or 0."""
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_no_key(error: BaseException) -> bool:
    """Return whether S3 says that there is no object; of a HEAD, that may also mean that there is no bucket."""
    return code(error) in _NO_KEY


def is_precondition(error: BaseException) -> bool:
    """Return whether S3 says that the condition of a request does not hold."""
    return code(error) in ("PreconditionFailed", "412") or status(error) == 412


def is_not_implemented(error: BaseException) -> bool:
    """Return whether the server has never heard of what it is asked for."""
    return code(error) in ("NotImplemented", "MethodNotAllowed") or status(error) in (405, 501)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed in a moment."""
    if isinstance(error, boto.ClientError):
        return (
            code(error) in _BUSY or status(error) == 429 or (status(error) >= 500 and status(error) not in (501, 507))
        )
    # a name that is not known, or a certificate that is not trusted, will not be in a moment
    return isinstance(error, _BROKEN) and not isinstance(error, boto.EndpointConnectionError | boto.SSLError)


def is_unreachable(error: BaseException) -> bool:
    """Return whether nobody answers at the address."""
    return isinstance(error, boto.EndpointConnectionError)


def mapped(error: Exception, *, key: str, url: str, bucket: str, secrets: Iterable[str]) -> StorageError:
    """Return the StorageError for *error*, with what to do next, and without *secrets*."""
    where = f"{key or 'the storage'} in {redact(url)}"
    if isinstance(error, StorageError):
        return error
    kind, hint, reason = _explained(error, bucket)
    for secret in secrets:
        reason = reason.replace(secret, "***")
    return kind(f"{where}: {reason}", key=key, hint=hint)


def _explained(error: Exception, bucket: str) -> tuple[type[StorageError], str, str]:
    name = code(error)
    said = str(error.response.get("Error", {}).get("Message", "")) if isinstance(error, boto.ClientError) else ""
    reason = f"{name}: {said}" if name and said else name or f"{type(error).__name__}: {error}"
    if name == "NoSuchBucket":
        return (
            StorageError,
            "create the bucket, or check its name, the region and the endpoint",
            (f"there is no bucket {bucket}"),
        )
    if name in _NO_KEY:
        return ObjectNotFound, "", "there is no such object"
    if name in _CREDENTIALS or isinstance(error, _NO_CREDENTIALS):
        return StorageError, "check the credentials: the options key, secret and token, or AWS_PROFILE", reason
    if name in _CLOCK:
        return StorageError, "set the clock of this machine: S3 refuses requests that are 15 minutes off", reason
    if name in _REGION or isinstance(error, boto.NoRegionError):
        return StorageError, 'name the region of the bucket: client_kwargs={"region_name": ...}', reason
    if name in _FULL:
        return StorageFull, "free some space or raise the quota, then run it again", reason
    if status(error) in (401, 403) or name in ("AccessDenied", "AllAccessDisabled"):
        return (
            StorageError,
            (
                "check the credentials and their policy: s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket, "
                "s3:AbortMultipartUpload, s3:ListBucketMultipartUploads; and the clock of this machine"
            ),
            reason,
        )
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError):
        return StorageError, "check endpoint_url, and whether the server runs", reason
    if isinstance(error, boto.SSLError):
        return StorageError, 'check the certificate: client_kwargs={"verify": "/path/of/ca.pem"}', reason
    if is_transient(error):
        return StorageError, "the storage is busy or the connection bad: run it again later", reason
    return StorageError, "", reason

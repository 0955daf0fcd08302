"""From an ``s3://`` URL to a backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aiobotocore.session import AioSession
from s3fs import S3FileSystem

from nixery_backend_s3._connection import Place
from nixery_backend_s3._store import S3Store
from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig
from nixery_core.storage.backend import BackendRef
from nixery_core.storage.bucket_tools import bucket_and_prefix, check_option_names
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.object_store_backend import LARGE_BLOBS, ObjectStoreBackend
from nixery_core.storage.retrying import Retrying

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CONFIG = {
    # we send requests again ourselves, so that events tell of it
    "retries": {"mode": "standard", "total_max_attempts": 1},
    # the newer checksums are refused by many servers that are not Amazon's
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "signature_version": "s3v4",
    # several layers at once, each with several parts
    "max_pool_connections": 40,
    # a server may take its time to copy or to complete a large object
    "read_timeout": 120,
}
_OURS = {"retries", "public_endpoint_url", "large_blobs"}
_NOT_OPTIONS = {"self", "kwargs", "asynchronous", "loop", "session"}


class S3Backend(ObjectStoreBackend):
    """Keeps objects in a bucket of S3; a :class:`~nixery_core.storage.backend.Backend`; see :func:`open_backend`.

    Beside what every bucket can do, uploads that a killed process left can be listed and aborted.
    """

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        """Give every unfinished upload of this storage, also those that a writer is busy with."""
        return self._uploads().list_uploads()

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that is finished or gone is success."""
        self._uploads().abort_upload(upload)

    def _uploads(self) -> S3Store:
        assert isinstance(self._store, S3Store)
        return self._store


def open_backend(url: str, **options: Any) -> S3Backend:
    """Return the backend for ``s3://bucket/prefix``; nothing is sent before it is used.

    Args:
        url: The bucket, and where in it.
        options: Of :class:`s3fs.S3FileSystem`: ``key``, ``secret``, ``token``, ``profile``, ``anon``,
            ``endpoint_url``, ``client_kwargs``, ``config_kwargs`` ... and beside them

            ``retries``
                How often a request is sent at most while the server is busy or the connection
                breaks; 6 by default.
            ``public_endpoint_url``
                Where clients reach the server, for signed URLs; ``endpoint_url`` by default.
            ``large_blobs``
                What is larger than 8 MiB: ``"spool"`` keeps it in a temporary file until its digest is
                known, and uploads it once; ``"stage"`` uploads it while it is written, and lets the
                service copy it into its place; ``"auto"``, the default, does the first where this
                machine has the room on a disk, else the second.

    Raises:
        InvalidConfig: For a malformed URL or an unknown option.
    """
    bucket, prefix = _parse(url)
    _check_options(url, options)
    retries = options.get("retries", Retrying().attempts)
    if not isinstance(retries, int) or isinstance(retries, bool):
        raise InvalidConfig(f"retries is a number, not {retries!r}")
    large_blobs = options.get("large_blobs", "auto")
    if large_blobs not in LARGE_BLOBS:
        raise InvalidConfig(f"large_blobs is {' or '.join(map(repr, LARGE_BLOBS))}, not {large_blobs!r}")
    place = Place(
        url=redact(url),
        bucket=bucket,
        prefix=prefix,
        options=_s3fs_options(options),
        public_endpoint_url=options.get("public_endpoint_url"),
    )
    return S3Backend(BackendRef(url, options), S3Store(place, Retrying(attempts=retries)), large_blobs=large_blobs)


def _parse(url: str) -> tuple[str, str]:
    bucket = url.partition("://")[2].partition("/")[0]
    if "@" in bucket or ":" in bucket:
        raise InvalidConfig(
            f"{redact(url)!r} is not s3://bucket/prefix: credentials and servers have no place in it",
            hint="pass key=, secret= and endpoint_url=, or set AWS_PROFILE",
        )
    return bucket_and_prefix(url, _BUCKET, hint="write s3://bucket/prefix")


def _check_options(url: str, options: Mapping[str, Any]) -> None:
    known = {
        *_OURS,
        *inspect.signature(S3FileSystem.__init__).parameters,
        *inspect.signature(AioSession.__init__).parameters,
    } - _NOT_OPTIONS
    check_option_names(url, options, known, see="the options of s3fs.S3FileSystem")
    for pair in ({"key", "username"}, {"secret", "password"}):
        if all(options.get(name) for name in pair):
            raise InvalidConfig(f"{redact(url)} takes {' or '.join(sorted(pair))}, not both")


def _s3fs_options(options: Mapping[str, Any]) -> dict[str, Any]:
    config = {**_CONFIG, **(options.get("config_kwargs") or {})}
    if options.get("anon"):
        config.pop("signature_version")
    own = {name: value for name, value in options.items() if name not in _OURS}
    # a cached listing says that a new object does not exist
    return {**own, "config_kwargs": config, "use_listings_cache": False}

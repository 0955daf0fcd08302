"""From a ``gs://`` URL to a backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# not gcsfs.GCSFileSystem: that one asks by gRPC of what kind a bucket is, which no other server answers
from gcsfs.core import GCSFileSystem

from nixery_backend_gcs._store import GcsStore, Place
from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig
from nixery_core.storage.backend import BackendRef
from nixery_core.storage.bucket_tools import bucket_and_prefix, check_option_names
from nixery_core.storage.object_store_backend import ObjectStoreBackend
from nixery_core.storage.retrying import Retrying

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_OURS = {"retries"}
_NOT_OPTIONS = {"self", "kwargs", "asynchronous", "loop", "secure_serialize", "check_connection"}


def open_backend(url: str, **options: Any) -> ObjectStoreBackend:
    """Return the backend for ``gs://bucket/prefix``; nothing is sent before it is used.

    Args:
        url: The bucket, and where in it.
        options: Of :class:`gcsfs.GCSFileSystem`: ``token``, ``project``, ``endpoint_url``,
            ``requester_pays`` ... and beside them

            ``retries``
                How often a request is sent at most while the service is busy or the connection
                breaks; 6 by default.

    Raises:
        InvalidConfig: For a malformed URL or an unknown option.
    """
    bucket, prefix = _parse(url)
    _check_options(url, options)
    retries = options.get("retries", Retrying().attempts)
    if not isinstance(retries, int) or isinstance(retries, bool):
        raise InvalidConfig(f"retries is a number, not {retries!r}")
    own = {name: value for name, value in options.items() if name not in _OURS}
    # a cached listing says that a new object does not exist
    place = Place(url=redact(url), bucket=bucket, prefix=prefix, options={**own, "use_listings_cache": False})
    store = GcsStore(place, Retrying(attempts=retries))
    # a copy inside the service moves no bytes, and a session takes one part after the other: the sooner, the better
    return ObjectStoreBackend(BackendRef(url, options), store, large_blobs="stage")


def _parse(url: str) -> tuple[str, str]:
    return bucket_and_prefix(url, _BUCKET, hint="write gs://bucket/prefix; pass token= and endpoint_url= beside it")


def _check_options(url: str, options: Mapping[str, Any]) -> None:
    known = {*_OURS, *inspect.signature(GCSFileSystem.__init__).parameters} - _NOT_OPTIONS
    check_option_names(url, options, known, see="the options of gcsfs.GCSFileSystem")
    token = options.get("token")
    # gcsfs takes the name of a file that is not there for an access token
    if isinstance(token, str) and token.endswith(".json") and not Path(token).expanduser().is_file():
        raise InvalidConfig(f"{redact(url)}: there is no file {token}, which the option token names")

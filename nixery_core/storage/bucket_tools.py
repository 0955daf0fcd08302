"""What the backends of all services with buckets have in common, beside their promises."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, InvalidKey, NixeryError, StorageError, nearest
from nixery_core.storage.keys import check_prefix


def bucket_and_prefix(url: str, pattern: re.Pattern[str], *, hint: str) -> tuple[str, str]:
    """Return the bucket that *url* names, and what is put before each key in it.

    Args:
        url: ``scheme://bucket/prefix``.
        pattern: What a bucket may be called.
        hint: What to write instead.

    Raises:
        InvalidConfig: For a name that no bucket has, or a prefix that keys cannot begin with.

    >>> bucket_and_prefix("s3://images/team/", re.compile("[a-z]+"), hint="write s3://bucket/prefix")
    ('images', 'team/')
    """
    bucket, _, path = url.partition("://")[2].partition("/")
    if not pattern.fullmatch(bucket):
        raise InvalidConfig(f"{redact(url)!r} names no bucket", hint=hint)
    prefix = f"{path.rstrip('/')}/" if path.rstrip("/") else ""
    try:
        check_prefix(prefix)
    except InvalidKey as error:
        raise InvalidConfig(f"{redact(url)!r} has a prefix that cannot be one: {error.message}") from error
    return bucket, prefix


def check_option_names(url: str, names: Iterable[str], known: Collection[str], *, see: str) -> None:
    """Raise InvalidConfig for an option that the backend for *url* does not take; *see* says where all are told."""
    for name in names:
        if name not in known:
            near = nearest(name, sorted(known))
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {see}"
            raise InvalidConfig(f"{redact(url)} does not take the option {name}", hint=hint)


@contextmanager
def only_our_errors(told: Callable[[Exception], StorageError]) -> Iterator[None]:
    """Turn whatever the library of a service raises into what *told* makes of it.

    Errors of this library pass: whoever follows the requests may end the build with one.
    """
    try:
        yield
    except NixeryError:
        raise
    except Exception as error:
        raise told(error) from error

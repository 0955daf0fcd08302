"""Iterators that hold something open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def closing(iterable: Iterable[_T]) -> Iterator[Iterator[_T]]:
    """Give an iterator over *iterable*, and let go in the end of what it holds, not when it is collected."""
    iterator = iter(iterable)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()

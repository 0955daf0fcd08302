"""What the storage adapter has to know of a file system beyond what fsspec says of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

BLOCK = 8 << 20
"""Bytes that go to or come from the storage at once."""


@attrs.frozen(kw_only=True)
class Traits:
    """What a kind of file system can do; the defaults are what can be expected of any."""

    only_new: Mapping[str, Any] | None = None
    """Options with which ``pipe_file`` refuses an existing object; None where it does not put one in one act."""
    marked: Callable[[str], Mapping[str, Any]] | None = None
    """Options with which ``pipe_file`` notes a mark of its caller in the ``metadata`` of the object, as ``writer``."""
    in_memory: bool = False
    """Objects are in memory anyway, so a blob may be there in one piece as well."""
    whole_on_close: bool = False
    """What is written to a file is nowhere until it is closed; then it is there whole, and needs no staging."""
    write: int = BLOCK
    """Bytes that are written to a file at once."""
    block: int = BLOCK
    """Bytes in which a file sends them; where that is less, it sends several side by side."""
    rename_refuses: bool = False
    """``fs.ftp.rename`` never takes the place of a file."""
    container: bool = False
    """Paths begin with a container, which somebody else makes; in one that is not there nothing is found."""
    credentials: str = ""
    """What to check where the server refuses, as a hint."""


# by fsspec's name of the protocol; each was measured with the conformance suite
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "memory": {"in_memory": True},
    "sftp": {
        "rename_refuses": True,
        "credentials": "check the user, and the options key_filename, password and port",
    },
    # adlfs: a blob of Azure is made of blocks that nobody sees before their list is committed
    "abfs": {
        "only_new": {"overwrite": False},
        "marked": lambda mark: {"headers": {"x-ms-meta-writer": mark}},
        "whole_on_close": True,
        # a blob has at most 50,000 blocks, so 195 GiB
        "write": 16 << 20,
        "block": 4 << 20,
        "container": True,
        "credentials": (
            "check the options connection_string, or account_name with account_key, sas_token or credential, "
            "what they allow, and the clock of this machine"
        ),
    },
}


def traits_of(kind: type[AbstractFileSystem]) -> Traits:
    """Return what is known of a kind of file system.

    >>> from fsspec.implementations.local import LocalFileSystem
    >>> traits_of(LocalFileSystem).only_new is None
    True
    """
    traits = Traits(only_new={"mode": "create"} if _takes_mode(kind) else None)
    for protocol in (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol:
        traits = attrs.evolve(traits, **_KNOWN.get(protocol, {}))
    return traits


def _takes_mode(kind: type[AbstractFileSystem]) -> bool:
    """Return whether *kind* puts an object in one call, and refuses if there is one when asked to."""
    put = getattr(kind, "_pipe_file" if issubclass(kind, AsyncFileSystem) else "pipe_file")
    if put is AbstractFileSystem.pipe_file:
        return False
    return "mode" in inspect.signature(put).parameters

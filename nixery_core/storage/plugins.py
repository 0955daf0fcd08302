"""From a URL to a backend: built-in ones, installed ones, and whatever fsspec knows."""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from fsspec import available_protocols, get_filesystem_class
from fsspec.registry import known_implementations

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, StorageError, UnknownScheme, nearest
from nixery_core.storage.backend import Backend
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.local import LocalBackend

GROUP = "nixery_core.backends"
"""The entry point group of backends: the name is the scheme, the value a function ``(url, **options) -> Backend``."""

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>/*)")
# schemes that are not left to plain fsspec, which cannot keep the promises there
_PACKAGES = {
    "s3": "nixery-backend-s3",
    "s3a": "nixery-backend-s3",
    "gs": "nixery-backend-gcs",
    "gcs": "nixery-backend-gcs",
}


def open_backend(url: str | os.PathLike[str], **options: Any) -> Backend:
    """Return the backend for *url*; nothing is read or created before it is used.

    Args:
        url: A path or ``file:///path`` for a directory, ``memory://name`` for the memory of this
            process, or the URL of a backend that is installed: ``s3://bucket/prefix``.
        options: What the backend takes beside the URL: credentials, an endpoint, ...

    Raises:
        InvalidConfig: For a malformed URL, or options that the backend does not take.
        UnknownScheme: If no backend is installed for the scheme; the hint names the package.
        StorageError: If the backend cannot be opened.

    >>> open_backend("memory://images").create("index.json", b"{}")
    True
    """
    text = os.fspath(url)
    scheme, slashes = _scheme(text) if isinstance(url, str) else ("", "")
    if not scheme:
        return _local(text, text, options)
    if not slashes.startswith("//"):
        raise InvalidConfig(f"{redact(text)!r} is neither a URL nor a path", hint=f"write {scheme}://... or ./{text}")
    if scheme in ("file", "local"):
        return _local(_file_path(text), text, options)
    if scheme == "memory":
        _no_options("memory", options)
        return FsspecBackend(text)
    plugin = _plugin(scheme)
    if plugin is not None:
        return _open_plugin(plugin, text, options)
    _check_known(scheme, text)
    return FsspecBackend(text, options)


def _scheme(text: str) -> tuple[str, str]:
    match = _SCHEME.match(text)
    if match is None:
        return "", ""
    scheme, slashes = match["scheme"].lower(), match["slashes"]
    # a file name may hold a colon
    if not slashes.startswith("//") and scheme not in _known_schemes():
        return "", ""
    return scheme, slashes


def _known_schemes() -> set[str]:
    installed = {entry.name for entry in entry_points(group=GROUP)}
    return {"file", "memory", *_PACKAGES, *installed, *available_protocols()}


def _local(path: str, url: str, options: dict[str, Any]) -> LocalBackend:
    _no_options("a directory", options)
    if "\0" in path:
        raise InvalidConfig(f"{url!r} is not a path: it holds a zero byte")
    return LocalBackend(Path(path) if path else path)


def _no_options(what: str, options: dict[str, Any]) -> None:
    if options:
        raise InvalidConfig(f"{what} takes no options, but got {', '.join(sorted(options))}")


def _file_path(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidConfig(f"{redact(url)!r} is not a URL: {error}") from error
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidConfig(
            f"{redact(url)!r} names no absolute path", hint="write file:///path, or the path alone if it is relative"
        )
    if parts.query or parts.fragment:
        raise InvalidConfig(
            f"{redact(url)!r}: a file URL has no query and no fragment", hint="write %3F for ?, %23 for #"
        )
    return os.fsdecode(unquote_to_bytes(parts.path))


def _plugin(scheme: str) -> EntryPoint | None:
    found = {
        (entry.value, entry.dist.name if entry.dist else ""): entry for entry in entry_points(group=GROUP, name=scheme)
    }
    if len(found) > 1:
        owners = " and ".join(sorted(owner or value for value, owner in found))
        raise StorageError(f"{owners} both offer a backend for {scheme}://", hint="uninstall one of them")
    return next(iter(found.values()), None)


def _open_plugin(plugin: EntryPoint, url: str, options: dict[str, Any]) -> Backend:
    owner = plugin.dist.name if plugin.dist else plugin.value
    try:
        factory = plugin.load()
    except (ImportError, AttributeError) as error:
        raise StorageError(
            f"the backend for {plugin.name}:// of {owner} cannot be loaded: {error}", hint=f"install {owner} again"
        ) from error
    backend: Backend = factory(url, **options)
    return backend


def _check_known(scheme: str, url: str) -> None:
    if scheme in _PACKAGES:
        raise UnknownScheme(f"no backend is installed for {redact(url)}", hint=f"pip install {_PACKAGES[scheme]}")
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        hint = str(known_implementations.get(scheme, {}).get("err", error))
        raise UnknownScheme(f"no backend is installed for {redact(url)}", hint=hint) from error
    except ValueError as error:
        near = nearest(scheme, sorted(_known_schemes()))
        hint = (
            f"did you mean {' or '.join(f'{name}://' for name in near)}?"
            if near
            else "a directory is named by its path"
        )
        raise UnknownScheme(f"no backend knows the scheme of {redact(url)}", hint=hint) from error

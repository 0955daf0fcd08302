"""The one package source and the one storage that an environment names, also in Nixery's words.

Source: Nixery, README, "Configuration".
"""

from __future__ import annotations

from collections.abc import Mapping

from nixery_core.errors import InvalidConfig, nearest

SOURCE_VARIABLES = ("NIXERY_SOURCE", "NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_PKGS_PATH")
STORAGE_VARIABLES = ("NIXERY_STORE", "NIXERY_STORAGE_BACKEND", "STORAGE_PATH", "GCS_BUCKET", "S3_BUCKET")

_SOURCES = {"NIXERY_CHANNEL": "channel:", "NIXERY_PKGS_REPO": "git:", "NIXERY_PKGS_PATH": "path:"}
_BACKENDS = {"filesystem": "STORAGE_PATH", "gcs": "GCS_BUCKET", "s3": "S3_BUCKET", "url": "NIXERY_STORE"}
_SCHEMES = {"STORAGE_PATH": "", "GCS_BUCKET": "gs://", "S3_BUCKET": "s3://", "NIXERY_STORE": ""}


def chosen_source(environment: Mapping[str, str]) -> str:
    """Return the package source, written as for ``--source``; raises InvalidConfig for none and for two.

    >>> chosen_source({"NIXERY_PKGS_REPO": "https://example.org/set"})
    'git:https://example.org/set'
    """
    named = {name: value for name in SOURCE_VARIABLES if (value := environment.get(name, "").strip())}
    if not named:
        raise InvalidConfig(
            "no package source is set",
            hint="give --source, or set one of NIXERY_CHANNEL, NIXERY_PKGS_REPO, NIXERY_PKGS_PATH or NIXERY_SOURCE",
        )
    if len(named) > 1:
        raise InvalidConfig(
            f"{' and '.join(named)} each name a package source", hint="set one of them, or give --source"
        )
    ((name, value),) = named.items()
    return _SOURCES.get(name, "") + value


def chosen_store(environment: Mapping[str, str]) -> str:
    """Return the storage, written as for ``--store``; raises InvalidConfig for none and for two.

    >>> chosen_store({"NIXERY_STORAGE_BACKEND": "gcs", "GCS_BUCKET": "images"})
    'gs://images'
    """
    named = {name: value for name in _SCHEMES if (value := environment.get(name, "").strip())}
    backend = environment.get("NIXERY_STORAGE_BACKEND", "").strip().lower()
    if backend:
        if backend not in _BACKENDS:
            close = nearest(backend, list(_BACKENDS), limit=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(_BACKENDS)}, or give --store"
            raise InvalidConfig(f"NIXERY_STORAGE_BACKEND knows no {backend!r}", hint=hint)
        wanted = _BACKENDS[backend]
        if wanted not in named:
            raise InvalidConfig(f"NIXERY_STORAGE_BACKEND is {backend}, and {wanted} is not set", hint=f"set {wanted}")
        if "NIXERY_STORE" in named and wanted != "NIXERY_STORE":
            raise InvalidConfig(
                f"NIXERY_STORE and NIXERY_STORAGE_BACKEND={backend} each name a storage", hint="set one of them"
            )
        # what another backend would read is Nixery's too, and says nothing here
        named = {wanted: named[wanted]}
    if not named:
        raise InvalidConfig(
            "no storage is set",
            hint="give --store, or set NIXERY_STORAGE_BACKEND and STORAGE_PATH or GCS_BUCKET, or NIXERY_STORE",
        )
    if len(named) > 1:
        raise InvalidConfig(
            f"{' and '.join(named)} each name a storage", hint="set NIXERY_STORAGE_BACKEND, or give --store"
        )
    ((name, value),) = named.items()
    return _SCHEMES[name] + value

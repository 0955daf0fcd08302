"""How a package source is written on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nixery_core.cli.cache_argument import GRAMMAR as CACHE_GRAMMAR
from nixery_core.cli.cache_argument import CacheOptions, parse_cache_source
from nixery_core.errors import InvalidConfig
from nixery_core.nix.demo import demo_path
from nixery_core.sources import GitRepository, LocalPath, NixpkgsChannel, PackageSource

GRAMMAR = f"""\
channel:NAME      a nixpkgs channel: channel:nixos-unstable
nixpkgs:COMMIT    nixpkgs at a full commit
git:URL[#REF]     a git repository; image tags are its branches, tags and commits,
                  REF is what the tag latest means (by default the remote's HEAD)
path:DIR          a folder with a default.nix; ./DIR and /DIR mean the same
demo              the package set that comes with nixery-core, for Nix to build
{CACHE_GRAMMAR}"""


def parse_source(text: str, import_args: Mapping[str, Any], caches: CacheOptions | None = None) -> PackageSource:
    """Read the argument of ``--source``, with what other arguments say of *caches*; raises InvalidConfig.

    >>> parse_source("channel:nixos-24.05", {}).channel
    'nixos-24.05'
    >>> parse_source("git+https://example.org/set.git#main", {}).ref
    'main'
    """
    kind, colon, rest = text.partition(":")
    if kind == "cache":
        if import_args:
            raise InvalidConfig(
                "the packages of a binary cache are built already, so they take no arguments",
                hint="give --allow-unfree and --import-args to nixery-core index",
            )
        return parse_cache_source(rest, caches or CacheOptions())
    if caches is not None and caches != CacheOptions():
        raise InvalidConfig(
            f"{text!r} is no binary cache, so it takes no --cache, --trusted-key or --allow-unsigned",
            hint="write --source cache:URL; the caches of Nix are named by --nix-option substituters",
        )
    if text == "demo":
        return LocalPath(demo_path(), import_args=import_args)
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return LocalPath(text, import_args=import_args)
    if kind.startswith("git+"):
        kind, rest = "git", text.removeprefix("git+")
    if colon and rest:
        if kind in ("channel", "nixpkgs"):
            return NixpkgsChannel(rest, import_args=import_args)
        if kind == "git":
            url, _, ref = rest.partition("#")
            return GitRepository(url, ref=ref or None, import_args=import_args)
        if kind == "path":
            return LocalPath(rest, import_args=import_args)
    raise InvalidConfig(f"{text!r} is not a package source", hint="write one of:\n" + GRAMMAR)


def parse_import_args(text: str | None, *, allow_unfree: bool) -> dict[str, Any]:
    """Read ``--import-args`` and ``--allow-unfree``; raises InvalidConfig.

    >>> parse_import_args(None, allow_unfree=True)
    {'config': {'allowUnfree': True}}
    """
    try:
        arguments = json.loads(text) if text else {}
    except ValueError as error:
        raise InvalidConfig(f"--import-args is not JSON: {error}", hint='write {"config": {...}}') from None
    if not isinstance(arguments, dict) or not isinstance(arguments.get("config", {}), dict):
        raise InvalidConfig("--import-args is a JSON object", hint='write {"config": {...}}')
    if allow_unfree:
        arguments["config"] = {**arguments.get("config", {}), "allowUnfree": True}
    return arguments

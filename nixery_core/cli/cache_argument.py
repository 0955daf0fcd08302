"""How a binary cache as a package source is written on the command line."""

from __future__ import annotations

import argparse

import attrs

from nixery_core.cache_source import BinaryCacheSource
from nixery_core.errors import InvalidConfig
from nixery_core.index.channel import ChannelIndex
from nixery_core.index.hydra import HydraIndex
from nixery_core.index.index_file import IndexFile
from nixery_core.index.package_index import PackageIndex
from nixery_core.stores.binary_cache import BinaryCache

GRAMMAR = """\
cache:URL[#INDEX] a binary cache, without Nix; INDEX says what names are:
                  FILE or URL of what nixery-core index writes, channel:NAME,
                  or hydra:PROJECT/JOBSET; without it, packages are store paths"""
_DEFAULT_KEY = "cache.nixos.org-1"


@attrs.frozen(kw_only=True)
class CacheOptions:
    """What is said of binary caches beside the source."""

    more: tuple[str, ...] = ()
    """URLs of further caches."""
    trusted_keys: tuple[str, ...] = ()
    """Public keys; none means the one of cache.nixos.org."""
    allow_unsigned: bool = False


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``, ``--trusted-key`` and ``--allow-unsigned``."""
    group = parser.add_argument_group("binary caches (--source cache:..)")
    group.add_argument(
        "--cache", action="append", default=[], metavar="URL", help="one more binary cache to ask; may be repeated"
    )
    group.add_argument(
        "--trusted-key",
        action="append",
        default=[],
        metavar="NAME:BASE64",
        help=f"public key whose signatures are believed, or its known name; may be repeated (default: {_DEFAULT_KEY})",
    )
    group.add_argument("--allow-unsigned", action="store_true", help="take store paths that no trusted key has signed")


def cache_options(arguments: argparse.Namespace) -> CacheOptions:
    """Return what the arguments say of binary caches."""
    return CacheOptions(
        more=tuple(arguments.cache),
        trusted_keys=tuple(arguments.trusted_key),
        allow_unsigned=arguments.allow_unsigned,
    )


def parse_cache_source(text: str, options: CacheOptions) -> BinaryCacheSource:
    """Read what follows ``cache:``; raises InvalidConfig.

    >>> parse_cache_source("https://cache.nixos.org#channel:nixos-unstable", CacheOptions()).index
    ChannelIndex(channel='nixos-unstable', ...)
    """
    url, _, index = text.partition("#")
    if not url:
        raise InvalidConfig("the binary cache has no URL", hint="write cache:https://cache.nixos.org")
    keys = options.trusted_keys or (_DEFAULT_KEY,)
    caches = [
        BinaryCache(each, trusted_keys=keys, allow_unsigned=options.allow_unsigned) for each in (url, *options.more)
    ]
    return BinaryCacheSource(caches, parse_index(index) if index else None)


def parse_index(text: str) -> PackageIndex:
    """Read the name of a package index; raises InvalidConfig.

    >>> parse_index("hydra:https://hydra.example.org/tools/main").hydra_url
    'https://hydra.example.org'
    >>> parse_index("channel:nixos-24.05").channel, parse_index("./index.json.xz").kind
    ('nixos-24.05', 'index')
    """
    kind, _, rest = text.partition(":")
    if kind == "channel":
        folder, _, name = rest.rpartition("/")
        return ChannelIndex(name, channels_url=folder) if folder else ChannelIndex(name)
    if kind == "hydra":
        path, _, jobset = rest.rpartition("/")
        server, _, project = path.rpartition("/")
        if not jobset or not project:
            raise InvalidConfig(f"{text!r} names no jobset", hint="write hydra:nixpkgs/trunk")
        return HydraIndex(project, jobset, hydra_url=server) if server else HydraIndex(project, jobset)
    return IndexFile(text)

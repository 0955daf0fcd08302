"""Names of store paths."""

from __future__ import annotations

import re

import attrs

from nixery_core.errors import InvalidStorePath

STORE_DIR = "/nix/store"
"""The only store directory whose paths run unchanged in a container."""

_HASH = re.compile(r"[0-9abcdfghijklmnpqrsvwxyz]{32}")
_NAME = re.compile(r"[0-9A-Za-z+\-._?=]{1,211}")
_VERSION = re.compile(r"-(?=[^A-Za-z])")


# closures look their paths up again and again, so the hash is kept
@attrs.frozen(order=True, cache_hash=True)
class StorePath:
    """A path in the Nix store, ``/nix/store/<hash>-<name>``; ordered by hash, then by name.

    >>> path = StorePath.parse("/nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15")
    >>> path.name, path.package_name
    ('bash-5.2.15', 'bash')
    """

    hash: str
    """32 characters of Nix's base 32."""
    name: str
    """The name, with its version and output: ``curl-7.88.1-man``."""

    def __attrs_post_init__(self) -> None:
        if not _HASH.fullmatch(self.hash) or not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise InvalidStorePath(
                f"{self.base!r} does not name a store path",
                hint="a store path is /nix/store/<32 base-32 characters>-<name>",
            )

    @classmethod
    def parse(cls, text: str) -> StorePath:
        """Read a full path, or just its base name; raises InvalidStorePath for any other store directory."""
        directory, slash, base = text.rpartition("/")
        if slash and directory != STORE_DIR:
            raise InvalidStorePath(
                f"{text!r} is not a path in {STORE_DIR}",
                hint="name the store path itself; paths of other store directories cannot run in a container",
            )
        hash_part, _, name = base.partition("-")
        return cls(hash_part, name)

    @property
    def base(self) -> str:
        """The last component, ``<hash>-<name>``."""
        return f"{self.hash}-{self.name}"

    @property
    def package_name(self) -> str:
        """The name up to its version, as ``builtins.parseDrvName`` cuts it."""
        return package_name(self.name)

    def __str__(self) -> str:
        return f"{STORE_DIR}/{self.base}"


def package_name(name: str) -> str:
    """Return *name* up to its version, as ``builtins.parseDrvName`` cuts it.

    >>> package_name("curl-7.88.1-man"), package_name("python3.11-six-1.16.0")
    ('curl', 'python3.11-six')
    """
    return _VERSION.split(name, maxsplit=1)[0]

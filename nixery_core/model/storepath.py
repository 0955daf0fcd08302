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
_DATE = re.compile(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}")
# the outputs of nixpkgs' setup hook "multiple-outputs", and others that many packages have
_OUTPUTS = "bin data debug dev devdoc dist doc docs info lib man out py python static tests"
_OF_VERSIONS = "alpha beta git nightly pre rc snapshot stable unstable"
_NO_NAMES = frozenset(f"{_OUTPUTS} {_OF_VERSIONS}".split())


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


def name_without_version(name: str, package: str | None = None) -> str:
    """Return the name of what *name* is a version of; outputs of a package are that package.

    What follows the version is part of the name, as in an environment of Python that was made of
    some packages: it is another thing than Python.  The usual outputs are not, and neither is what
    belongs to a version, such as ``rc`` or ``unstable``.

    Args:
        name: The name of a store path or of a derivation.
        package: How *name* begins, up to its version; as ``builtins.parseDrvName`` cuts it if it is None.

    >>> name_without_version("curl-7.88.1-man"), name_without_version("python3-3.12.9-env")
    ('curl', 'python3-env')
    >>> name_without_version("gpm-unstable-2020-06-17"), name_without_version("wine-10.0-rc1")
    ('gpm', 'wine')
    >>> name_without_version("gtk-3-3.24.38-dev", "gtk-3")
    'gtk-3'
    """
    if package is None:
        package = package_name(name)
        if _DATE.match(name, len(package)):
            package = package.removesuffix("-unstable")
    after = name[len(package) :].split("-")
    return "-".join([package, *(part for part in after if part.isalpha() and part not in _NO_NAMES)])

"""How widely packages are used: what decides which store paths share a layer."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping

import attrs

from nixery_core.errors import InvalidDocument
from nixery_core.model.oci import canonical_json
from nixery_core.model.storepath import StorePath, name_without_version

_ONLY_VERSION = re.compile(r"-[0-9][0-9.]*")


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(counts)


@attrs.frozen
class Popularity:
    """For each package name, without version, the number of packages or images whose closure holds it.

    It must come from outside the image at hand: counted inside one image it would make the same
    package land in different layers of different images.

    >>> Popularity({"glibc": 70000}).of(StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-glibc-2.36"))
    70000
    """

    counts: Mapping[str, int] = attrs.field(factory=dict, converter=_counts)

    def __attrs_post_init__(self) -> None:
        for name, count in self.counts.items():
            if not isinstance(name, str) or not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise InvalidDocument(f"popularity is a count by package name, not {name!r}: {count!r}")

    def of(self, path: StorePath) -> int:
        """Return the count of the package of *path*; 0 where nothing is known."""
        return self.counts.get(self.name_of(path), 0)

    def name_of(self, path: StorePath) -> str:
        """Return the name under which the data knows *path*, else its name without version.

        A version cannot always be told from a name that holds digits, so the longest name that
        the data knows wins.  One that holds the very version of *path* is for want of another: it is
        lost with the next update.  What follows the version tells things apart that are used differently.

        >>> Popularity({"gtk-3": 7}).name_of(StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-gtk-3-3.24.38"))
        'gtk-3'
        >>> Popularity({"perl": 169}).name_of(StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-perl-5.40.0-env"))
        'perl-env'
        """
        name, shortest = path.name, path.package_name
        if shortest in self.counts and _ONLY_VERSION.fullmatch(name, len(shortest)):
            name = name.rpartition("-")[0]
        while name not in self.counts and len(name) > len(shortest):
            name, _, version = name.rpartition("-")
            while version[:1].isalpha() and version.isascii():
                name, _, version = name.rpartition("-")
        return name_without_version(path.name, name if name in self.counts else None)

    @functools.cached_property
    def digest(self) -> str:
        """The identity of the data, for cache keys; ``none`` without data."""
        return hashlib.sha256(canonical_json(self.counts)).hexdigest() if self.counts else "none"

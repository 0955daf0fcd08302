"""The JSON index: a document that holds the store paths of a package set, for one or more platforms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import attrs

from nixery_core.cancellation import Cancellation
from nixery_core.errors import InvalidDocument, PackageProblem, ProblemKind
from nixery_core.index.entry import IndexEntry
from nixery_core.index.names import NameTable
from nixery_core.index.package_index import Choose, LookedUp, choose_none, explicit_package
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import STORE_DIR

FORMAT_VERSION = 1
_HINT = "make it with: nixery-core index"


@attrs.frozen(kw_only=True, eq=False)
class IndexDocument:
    """A package set at one point in time; a snapshot of an index.

    Its entries are read when they are asked for, so a document of 100,000 packages costs little.

    >>> entry = IndexEntry.from_json({"outputs": {"out": "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15"}}, "bash")
    >>> document = IndexDocument.parse(index_bytes({"x86_64-linux": {"bash": entry}}))
    >>> document.systems, document.revision[:7]
    (('x86_64-linux',), 'sha256:')
    """

    revision: str
    """``sha256:`` and the hash of the document, unpacked."""
    systems: tuple[str, ...]
    """The Nix systems that it was made for."""
    made_of: Mapping[str, str]
    """What the package set was: ``kind``, ``url`` and, where it was pinned, ``revision``."""
    names: NameTable
    packages: Mapping[str, Any] = attrs.field(repr=False)
    where: str
    """What the document is called in errors."""

    @classmethod
    def parse(cls, data: bytes, *, where: str = "the index") -> IndexDocument:
        """Read a document, already unpacked; raises InvalidDocument, which names *where*."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidDocument(f"{where} is not JSON: {error}", hint=_HINT) from None
        if not isinstance(document, dict) or "format_version" not in document:
            raise InvalidDocument(f"{where} is not a package index", hint=_HINT)
        version = document["format_version"]
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise InvalidDocument(
                f"{where} has the format version {version!r}, not {FORMAT_VERSION}",
                hint="make it with this version of: nixery-core index",
            )
        packages, systems, source = document.get("packages"), document.get("systems", ""), document.get("source", {})
        if not isinstance(packages, dict) or not _is_texts(systems) or not _is_text_map(source):
            raise InvalidDocument(f"{where} has no packages, systems or source of the right form", hint=_HINT)
        if document.get("store_dir", STORE_DIR) != STORE_DIR:
            raise InvalidDocument(
                f"{where} is of the store {document['store_dir']!r}", hint=f"images hold paths of {STORE_DIR} alone"
            )
        return cls(
            revision=f"sha256:{hashlib.sha256(data).hexdigest()}",
            systems=tuple(systems),
            made_of=source,
            names=NameTable(packages),
            packages=packages,
            where=where,
        )

    def __len__(self) -> int:
        return len(self.packages)

    def look_up(
        self,
        names: Sequence[str],
        platform: Platform,
        *,
        choose: Choose = choose_none,  # noqa: ARG002 (an index has one store path for each output)
        cancellation: Cancellation,
    ) -> list[LookedUp]:
        """Return for each name its package or why there is none; raises InvalidDocument for a damaged entry."""
        cancellation.check()
        return [self._look_up(name, platform) for name in names]

    def entry(self, attribute: str, system: str) -> IndexEntry | None:
        """Return what is known of an attribute on a Nix system; raises InvalidDocument for a damaged entry."""
        systems = self.packages.get(attribute)
        if not isinstance(systems, Mapping):
            if systems is None:
                return None
            raise InvalidDocument(f"{self.where}: {attribute} is not an object")
        if system not in systems:
            return None
        return IndexEntry.from_json(systems[system], f"{self.where}: {attribute} on {system}")

    def entries(self, system: str) -> Iterator[tuple[str, IndexEntry]]:
        """Give every package that the index has for a Nix system, sorted by attribute."""
        for attribute in sorted(self.packages):
            entry = self.entry(attribute, system)
            if entry is not None:
                yield attribute, entry

    def _look_up(self, name: str, platform: Platform) -> LookedUp:
        explicit = explicit_package(name)
        if explicit is not None:
            return explicit
        if platform.system not in self.systems:
            reason = f"the index has packages for {' and '.join(self.systems) or 'no platform'}"
            return PackageProblem(name, ProblemKind.UNSUPPORTED_PLATFORM, reason)
        found = self.names.find(name)
        if isinstance(found, PackageProblem):
            return found
        entry = self.entry(found.attribute, platform.system)
        if entry is None:
            reason = f"the index has {found.attribute} for {' and '.join(sorted(self.packages[found.attribute]))}"
            return PackageProblem(name, ProblemKind.UNSUPPORTED_PLATFORM, reason)
        return entry.resolve(name, found)


def index_bytes(entries: Mapping[str, Mapping[str, IndexEntry]], *, source: Mapping[str, str] | None = None) -> bytes:
    r"""Return the document for the packages of each Nix system: sorted, one package a line, always the same bytes.

    >>> index_bytes({"x86_64-linux": {}})
    b'{"format_version":1,"packages":{},"source":{},"store_dir":"/nix/store","systems":["x86_64-linux"]}\n'
    """
    return b"".join(index_lines(entries, source=source))


def index_lines(
    entries: Mapping[str, Mapping[str, IndexEntry]], *, source: Mapping[str, str] | None = None
) -> Iterable[bytes]:
    """Give the document of :func:`index_bytes` in pieces."""
    yield b'{"format_version":%d,"packages":{' % FORMAT_VERSION
    attributes = sorted({attribute for packages in entries.values() for attribute in packages})
    for number, attribute in enumerate(attributes):
        systems = {system: packages[attribute] for system, packages in entries.items() if attribute in packages}
        value = {system: systems[system].to_json() for system in sorted(systems)}
        yield (",\n" if number else "\n").encode() + _json(attribute) + b":" + _json(value)
    yield b"\n}" if attributes else b"}"
    for field in ({"source": dict(source or {})}, {"store_dir": STORE_DIR}, {"systems": sorted(entries)}):
        yield b"," + _json(field)[1:-1]
    yield b"}\n"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())

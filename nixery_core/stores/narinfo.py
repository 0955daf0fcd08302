"""narinfo files: what a binary cache tells of one store path.

Source: the Nix manual, "Store Object Information", and Nix's own reader (``nar-info.cc``), whose
strictness is kept: a file that was cut short does not parse.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import attrs

from nixery_core.errors import InvalidDigest, InvalidDocument, InvalidStorePath
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath

_DEFAULT_COMPRESSION = "bzip2"
_UNKNOWN_DERIVER = "unknown-deriver"
_SINGLE = frozenset(
    ("StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver", "CA")
)


# the order of StorePath itself, many times faster than its operators
_order = operator.attrgetter("hash", "name")


def _sorted_set(paths: tuple[StorePath, ...]) -> tuple[StorePath, ...]:
    return tuple(sorted(set(paths), key=_order))


@attrs.frozen(kw_only=True)
class NarInfo:
    r"""One narinfo file.

    >>> info = NarInfo.parse(
    ...     b"StorePath: /nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15\n"
    ...     b"URL: nar/1qm2xr9qvddyydjmbic2bg8aqi8cd6vqsp2vshzbd396diz2ddns.nar.zst\n"
    ...     b"Compression: zstd\n"
    ...     b"NarHash: sha256:028hjj7dmh3g0klzlx12mkkm2irh7byhf1k2gb774asay83in8sb\n"
    ...     b"NarSize: 1360736\n"
    ...     b"References: 2jbjf45slgbqwcxxq5vdhzjayrlhnvsa-glibc-2.36\n"
    ... )
    >>> info.nar_size, [path.package_name for path in info.references]
    (1360736, ['glibc'])
    """

    store_path: StorePath
    """The store path that the file describes."""
    url: str
    """Where its archive is, as the cache writes it: relative to the cache, or absolute."""
    compression: str = _DEFAULT_COMPRESSION
    """``none``, ``xz``, ``zstd``, ...; a cache that does not say means bzip2."""
    file_hash: Digest | None = None
    """sha256 of the compressed archive."""
    file_size: int | None = None
    """Size of the compressed archive, bytes."""
    nar_hash: Digest
    """sha256 of the archive."""
    nar_size: int
    """Size of the archive, bytes."""
    references: tuple[StorePath, ...] = attrs.field(default=(), converter=_sorted_set)
    """The store paths that it refers to, sorted; holds the path itself where it refers to itself."""
    deriver: StorePath | None = None
    """The derivation that made it; None where the cache does not know."""
    signatures: tuple[str, ...] = ()
    """``<name of the key>:<base 64>``, in the order of the file."""
    content_address: str | None = None
    """How the path follows from its content; None for paths that follow from their inputs."""
    unknown: tuple[tuple[str, str], ...] = ()
    """Fields that are not known here, in the order of the file."""

    @classmethod
    def parse(cls, data: bytes, *, where: str = "the narinfo", known: dict[str, StorePath] | None = None) -> NarInfo:
        """Read the bytes of a narinfo file; raises InvalidDocument, which names *where* and the field.

        Args:
            data: The whole file.
            where: What the file is called in errors.
            known: Store paths by base name that were parsed before; those of this file are added.
        """
        single, signatures, unknown = _fields(data, where)
        reader = _Reader(single, where, {} if known is None else known)
        return cls(
            store_path=reader.own_path(),
            url=reader.text("URL"),
            compression=single.get("Compression") or _DEFAULT_COMPRESSION,
            file_hash=reader.digest("FileHash") if "FileHash" in single else None,
            file_size=reader.number("FileSize") if "FileSize" in single else None,
            nar_hash=reader.digest("NarHash"),
            nar_size=reader.size("NarSize"),
            references=tuple(reader.path("References", base) for base in single.get("References", "").split()),
            deriver=reader.deriver(),
            signatures=tuple(signatures),
            content_address=single.get("CA") or None,
            unknown=tuple(unknown),
        )

    def to_bytes(self) -> bytes:
        """Return the file as Nix writes it, unknown fields last."""
        optional = {
            "FileHash": self.file_hash.to_nix() if self.file_hash else None,
            "FileSize": self.file_size,
            "NarHash": self.nar_hash.to_nix(),
            "NarSize": self.nar_size,
            "References": " ".join(path.base for path in self.references),
            "Deriver": self.deriver.base if self.deriver else None,
        }
        lines = [("StorePath", str(self.store_path)), ("URL", self.url), ("Compression", self.compression)]
        lines += [(name, str(value)) for name, value in optional.items() if value is not None]
        lines += [("Sig", signature) for signature in self.signatures]
        lines += [("CA", self.content_address)] if self.content_address else []
        lines += self.unknown
        return "".join(f"{name}: {value}\n" for name, value in lines).encode()


def _fields(data: bytes, where: str) -> tuple[dict[str, str], list[str], list[tuple[str, str]]]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not text.endswith("\n"):
        raise InvalidDocument(f"{where} is cut short: its last line has no end", hint="fetch it again")
    single: dict[str, str] = {}
    signatures: list[str] = []
    unknown: list[tuple[str, str]] = []
    for number, line in enumerate(text[:-1].split("\n"), 1):
        name, colon, value = line.partition(": ")
        if not colon:
            # a field without a value may have lost the space behind its colon
            name, value = line[:-1], ""
            if not line.endswith(":"):
                raise InvalidDocument(f"{where}: line {number} is not 'Name: value' but {line[:80]!r}")
        if name == "Sig":
            signatures.append(value)
        elif name not in _SINGLE:
            unknown.append((name, value))
        elif name in single:
            raise InvalidDocument(f"{where}: {name} stands twice")
        else:
            single[name] = value
    return single, signatures, unknown


@attrs.frozen
class _Reader:
    single: Mapping[str, str]
    where: str
    known: dict[str, StorePath]

    def text(self, name: str) -> str:
        value = self.single.get(name)
        if not value:
            raise InvalidDocument(f"{self.where} has no {name}")
        return value

    def own_path(self) -> StorePath:
        text = self.text("StorePath")
        if not text.startswith("/"):
            raise InvalidDocument(f"{self.where}: StorePath is not a full path but {text!r}")
        try:
            path = StorePath.parse(text)
        except InvalidStorePath as error:
            raise InvalidDocument(f"{self.where}: StorePath: {error.message}", hint=error.hint) from None
        return self.known.setdefault(path.base, path)

    def path(self, name: str, base: str) -> StorePath:
        # most paths are referred to many times: each is parsed once
        found = self.known.get(base)
        if found is not None:
            return found
        if "/" in base:
            raise InvalidDocument(f"{self.where}: {name}: {base!r} is not the base name of a store path")
        try:
            return self.known.setdefault(base, StorePath.parse(base))
        except InvalidStorePath as error:
            raise InvalidDocument(f"{self.where}: {name}: {error.message}", hint=error.hint) from None

    def deriver(self) -> StorePath | None:
        base = self.single.get("Deriver", "")
        return self.path("Deriver", base) if base not in ("", _UNKNOWN_DERIVER) else None

    def digest(self, name: str) -> Digest:
        try:
            return Digest.parse_nix(self.text(name))
        except InvalidDigest as error:
            raise InvalidDocument(f"{self.where}: {name}: {error.message}", hint=error.hint) from None

    def number(self, name: str) -> int:
        text = self.text(name)
        if not text.isascii() or not text.isdecimal() or len(text) > 19:
            raise InvalidDocument(f"{self.where}: {name} is not a number of bytes but {text[:80]!r}")
        return int(text)

    def size(self, name: str) -> int:
        # an archive has at least its magic, and Nix takes 0 for a field that is missing
        size = self.number(name)
        if size == 0:
            raise InvalidDocument(f"{self.where}: {name} is 0")
        return size

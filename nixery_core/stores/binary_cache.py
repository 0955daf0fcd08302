"""Binary caches of Nix: what they know of store paths, and where the content is.

Source: Nix, ``binary-cache-store.cc``, ``http-binary-cache-store.cc``.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from nixery_core._redact import redact
from nixery_core.errors import BinaryCacheError, InvalidDocument, UntrustedPath
from nixery_core.model.storepath import STORE_DIR, StorePath
from nixery_core.stores._iterators import closing
from nixery_core.stores._objects import INFO, MOST_SMALL, Objects, open_objects
from nixery_core.stores._parallel import in_threads
from nixery_core.stores.content_address import check_content_address
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.signatures import PublicKey, public_keys, signed_by

DEFAULT_PRIORITY = 50
"""Of a cache that does not say; Nix takes the same."""
REMEMBERED = 1 << 13
"""Most answers that one cache remembers."""
POSITIVE_TTL = 3600.0
"""How long a narinfo is remembered, seconds."""

_NEVER: tuple[float, NarInfo | None] = (0.0, None)
# no dots alone; nothing that a file system or fsspec takes for a pattern or an address
_RELATIVE = re.compile(r"(?:(?!\.\.?(?:/|\Z))[A-Za-z0-9+\-._~=@]+(?:/(?!\Z)|\Z))+")
_ABSOLUTE = re.compile(r"https?://[^\s/?#@]+/[!-~]*")
_WEB = ("http://", "https://")


@attrs.frozen(kw_only=True)
class CacheInfo:
    """The file ``nix-cache-info`` of a binary cache."""

    store_dir: str = STORE_DIR
    """The store directory of its paths."""
    priority: int = DEFAULT_PRIORITY
    """Which of several caches is asked first: the one with the smallest number."""
    want_mass_query: bool = False
    """Whether the cache likes to be asked for many paths that it may not have."""

    @classmethod
    def parse(cls, data: bytes, *, where: str = "nix-cache-info") -> CacheInfo:
        r"""Read the file; raises InvalidDocument, which names *where*.  Unknown fields are passed over.

        >>> CacheInfo.parse(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n").priority
        40
        """
        fields: dict[str, str] = {}
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError:
            raise InvalidDocument(f"{where} is not UTF-8", hint="is it a binary cache of Nix?") from None
        for line in filter(None, lines):
            name, colon, value = line.partition(":")
            if not colon or name in fields:
                raise InvalidDocument(f"{where}: {line[:80]!r} is not 'Name: value', or stands twice")
            fields[name] = value.strip()
        if "StoreDir" not in fields:
            raise InvalidDocument(f"{where} has no StoreDir", hint="is it a binary cache of Nix?")
        return cls(
            store_dir=fields["StoreDir"],
            priority=_number(fields.get("Priority", str(DEFAULT_PRIORITY)), "Priority", where),
            want_mass_query=_number(fields.get("WantMassQuery", "0"), "WantMassQuery", where) == 1,
        )


@attrs.frozen
class BinaryCache:
    """One binary cache; it pickles, and holds no connection before it is first asked.

    What it gives of a store path is vouched for: by a signature of one of *trusted_keys*, or by the
    path itself where that follows from the content.  Whoever wants to go without says
    ``allow_unsigned=True``.

    Args:
        url: ``https://``, ``http://``, a directory, or any URL that fsspec knows (``s3://``, ``gs://``).
        trusted_keys: Public keys as ``name:base64``, any of which suffices; the key of
            cache.nixos.org goes by its name, ``cache.nixos.org-1``, and is the default, as in Nix.

    Raises:
        InvalidConfig: For keys, options or numbers that cannot be used.

    >>> BinaryCache("https://cache.nixos.org").trusted_keys[0].name
    'cache.nixos.org-1'
    """

    url: str = attrs.field(repr=redact)
    trusted_keys: tuple[PublicKey, ...] = attrs.field(default="cache.nixos.org-1", converter=public_keys)
    allow_unsigned: bool = attrs.field(default=False, kw_only=True)
    """Whether paths that nobody trusted vouches for are taken all the same."""
    priority: int | None = attrs.field(default=None, kw_only=True)
    """Which of several caches is asked first, in place of what the cache says; smallest first."""
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=dict, kw_only=True, repr=False)
    """For http(s): ``headers``, sent with every request; else keyword arguments of the file system of fsspec."""
    connections: int = attrs.field(default=32, kw_only=True, validator=attrs.validators.ge(1))
    """Most requests at once of one call."""
    retries: int = attrs.field(default=4, kw_only=True, validator=attrs.validators.ge(0))
    """How often an HTTP request is repeated, with growing pauses, that failed for a reason that may pass."""
    timeout: float = attrs.field(default=30.0, kw_only=True, validator=attrs.validators.gt(0))
    """Longest silence of a web server, seconds."""
    negative_ttl: float = attrs.field(default=60.0, kw_only=True, validator=attrs.validators.ge(0))
    """How long it is remembered that the cache does not have a path, or cannot be reached at all, seconds."""
    _opened: _PerProcess = attrs.field(factory=lambda: _PerProcess(), init=False, eq=False, repr=False)

    def info(self) -> CacheInfo:
        """Return what the cache says of itself, asked for once; raises BinaryCacheError."""
        return self._open().info

    def narinfo(self, path: StorePath) -> NarInfo | None:
        """Return what the cache knows of *path*, or None where it does not have it.

        Raises:
            BinaryCacheError: The cache cannot be read, or answers with something else.
            UntrustedPath: Nobody who is trusted vouches for the answer.
        """
        cache = self._open()
        found, info = cache.remembered(path)
        return info if found else self._read(cache, path, cache.objects.get(_file_name(path), MOST_SMALL), {})

    def narinfos(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, NarInfo | None]]:
        """Give every path of *paths* with what the cache knows of it, in the order in which the answers come.

        *paths* is read a little ahead of the answers.  Raises like :meth:`narinfo`; the first error
        ends the iterator, and with it every thread that it began.
        """
        with closing(self.answers(paths)) as answers:
            for path, answer in answers:
                if isinstance(answer, BinaryCacheError):
                    raise answer
                yield path, answer

    def answers(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, NarInfo | BinaryCacheError | None]]:
        """Give the same as :meth:`narinfos`, with the error for a path in place of raising it."""
        parsed: dict[str, StorePath] = {}
        try:
            cache = self._open()
        except BinaryCacheError as error:
            yield from ((path, error) for path in paths)
            return
        if cache.objects.batch is None:
            yield from in_threads(lambda path: self._answer(cache, path, parsed), paths, threads=self.connections)
            return
        for batch in _batches(paths, cache.objects.batch):
            unknown: list[StorePath] = []
            for path in batch:
                found, info = cache.remembered(path)
                if found:
                    yield path, info
                else:
                    unknown.append(path)
            files = cache.objects.get_many([_file_name(path) for path in unknown])
            for path, data in zip(unknown, files, strict=True):
                yield path, self._tried(cache, path, data, parsed)

    def file(self, name: str, *, most: int = MOST_SMALL) -> bytes | None:
        """Return a file of the cache whole, such as a listing, or None where there is none.

        Nobody vouches for it.  Raises BinaryCacheError, also where it has more than *most* bytes.
        """
        return self._open().objects.get(name, most)

    def archive(self, info: NarInfo) -> Iterator[bytes]:
        """Give the archive that *info* names in pieces, packed as it is; raises BinaryCacheError.

        Nothing is checked: :class:`~nixery_core.stores.cache_reader.BinaryCacheReader` does that.
        """
        return self._open().objects.stream(info.url)

    def where(self, name: str) -> str:
        """Return what a file of the cache is called in errors, secrets masked."""
        return name if "://" in name else f"{redact(self.url).rstrip('/')}/{name}"

    def _open(self) -> _Opened:
        opened = self._opened.value
        if opened is None or (isinstance(opened, _Failure) and time.monotonic() >= opened.until):
            objects = open_objects(
                self.url, self.options, timeout=self.timeout, retries=self.retries, connections=self.connections
            )
            # two threads may both do this; one of the results is dropped
            try:
                opened = _Opened(objects, self._read_info(objects), self.negative_ttl)
            except BinaryCacheError as error:
                # else each of a thousand paths would wait for all the retries
                opened = _Failure(error, time.monotonic() + self.negative_ttl)
            self._opened.value = opened
        if isinstance(opened, _Failure):
            raise opened.error.with_traceback(None)
        return opened

    def _read_info(self, objects: Objects) -> CacheInfo:
        where = self.where(INFO)
        data = objects.get(INFO, MOST_SMALL)
        if data is None:
            raise BinaryCacheError(f"there is no {where}", hint="is it a binary cache of Nix?")
        try:
            info = CacheInfo.parse(data, where=where)
        except InvalidDocument as error:
            raise BinaryCacheError(error.message, hint=error.hint) from None
        if info.store_dir != STORE_DIR:
            raise BinaryCacheError(
                f"{where} is about the store {info.store_dir!r}",
                hint=f"paths of a store other than {STORE_DIR} cannot run in a container",
            )
        return info

    def _answer(
        self, cache: _Opened, path: StorePath, parsed: dict[str, StorePath]
    ) -> tuple[StorePath, NarInfo | BinaryCacheError | None]:
        found, info = cache.remembered(path)
        if found:
            return path, info
        try:
            data = cache.objects.get(_file_name(path), MOST_SMALL)
        except BinaryCacheError as error:
            return path, error
        return path, self._tried(cache, path, data, parsed)

    def _tried(
        self, cache: _Opened, path: StorePath, data: bytes | BinaryCacheError | None, parsed: dict[str, StorePath]
    ) -> NarInfo | BinaryCacheError | None:
        if isinstance(data, BinaryCacheError):
            return data
        try:
            return self._read(cache, path, data, parsed)
        except BinaryCacheError as error:
            return error

    def _read(
        self, cache: _Opened, path: StorePath, data: bytes | None, parsed: dict[str, StorePath]
    ) -> NarInfo | None:
        info = None if data is None else self._parsed(path, data, parsed)
        cache.remember(path, info)
        return info

    def _parsed(self, path: StorePath, data: bytes, parsed: dict[str, StorePath]) -> NarInfo:
        where = self.where(_file_name(path))
        try:
            info = NarInfo.parse(data, where=where, known=parsed)
        except InvalidDocument as error:
            raise BinaryCacheError(error.message, hint=error.hint or "the cache is damaged") from None
        if info.store_path != path:
            raise BinaryCacheError(
                f"{where} speaks of {info.store_path}, not of {path}", hint="the cache is damaged or hostile"
            )
        if not self._holds(info.url):
            raise BinaryCacheError(
                f"{where}: the URL {info.url!r} leads out of the cache", hint="the cache is damaged or hostile"
            )
        if not self.allow_unsigned and signed_by(info, self.trusted_keys) is None:
            self._check_unsigned(info, where)
        return info

    def _holds(self, url: str) -> bool:
        """Return whether an archive may be at *url*: below the cache, or, on the web, on another server of the web."""
        if self.url.startswith(_WEB):
            # some caches name an archive by a query: nar/....nar?hash=...
            return bool(_ABSOLUTE.fullmatch(url) or _RELATIVE.fullmatch(url.partition("?")[0]))
        return bool(_RELATIVE.fullmatch(url))

    def _check_unsigned(self, info: NarInfo, where: str) -> None:
        if info.content_address is not None:
            check_content_address(info)
            return
        names = sorted({signature.partition(":")[0] for signature in info.signatures})
        trusted = sorted({key.name for key in self.trusted_keys})
        wrong = sorted(set(names) & set(trusted))
        if wrong:
            raise UntrustedPath(
                f"{where}: the signature by {', '.join(wrong)} is wrong",
                hint="the narinfo was changed, or the public key is not the one that it was signed with",
            )
        signed = f"is signed by {', '.join(names)}" if names else "is not signed"
        raise UntrustedPath(
            f"{info.store_path} {signed}, and trusted is {', '.join(trusted) or 'nobody'} ({where})",
            hint="give the public key of the cache in trusted_keys, or, if you must, allow_unsigned=True",
        )


@attrs.define(eq=False)
class _Opened:
    """An open cache, and what it answered lately."""

    objects: Objects
    info: CacheInfo
    negative_ttl: float
    _answers: dict[str, tuple[float, NarInfo | None]] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def remembered(self, path: StorePath) -> tuple[bool, NarInfo | None]:
        expires, info = self._answers.get(path.hash, _NEVER)
        if time.monotonic() >= expires or (info is not None and info.store_path != path):
            return False, None
        return True, info

    def remember(self, path: StorePath, info: NarInfo | None) -> None:
        expires = time.monotonic() + (self.negative_ttl if info is None else POSITIVE_TTL)
        with self._lock:
            self._answers.pop(path.hash, None)
            self._answers[path.hash] = expires, info
            if len(self._answers) > REMEMBERED:
                # the oldest is the first
                del self._answers[next(iter(self._answers))]


@attrs.frozen
class _Failure:
    """A cache that could not be opened, and until when it is not tried again."""

    error: BinaryCacheError
    until: float


class _PerProcess:
    """Holds what is open in this process: neither a copy by pickle nor a fork gets it."""

    def __init__(self) -> None:
        self._held: tuple[int, _Opened | _Failure] | None = None

    @property
    def value(self) -> _Opened | _Failure | None:
        return self._held[1] if self._held is not None and self._held[0] == os.getpid() else None

    @value.setter
    def value(self, value: _Opened | _Failure) -> None:
        self._held = os.getpid(), value

    def __reduce__(self) -> tuple[type[_PerProcess], tuple[()]]:
        return _PerProcess, ()


def _file_name(path: StorePath) -> str:
    return f"{path.hash}.narinfo"


def _batches(paths: Iterable[StorePath], size: int) -> Iterator[list[StorePath]]:
    iterator = iter(paths)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _number(text: str, name: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise InvalidDocument(f"{where}: {name} is not a number but {text[:80]!r}")
    return int(text)

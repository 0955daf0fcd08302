"""The content of store paths straight from binary caches, never on disk, verified on its way."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from nixery_core.errors import BinaryCacheError, PathsNotFound, StoreReadError
from nixery_core.model.storepath import StorePath
from nixery_core.stores._iterators import closing
from nixery_core.stores._surveys import HEAD, Survey, Surveys
from nixery_core.stores._unpack import unpacked
from nixery_core.stores.binary_caches import BinaryCaches, Found
from nixery_core.stores.content_address import file_hash
from nixery_core.stores.nar import nar_entries
from nixery_core.stores.nar_listing import ListingHash, parse_listing
from nixery_core.stores.reader import EntryType, StoreEntry

MOST_LISTING = 16 << 20
"""Most bytes of a listing; a larger one is passed over, since its JSON takes ten times as much memory."""


@attrs.frozen
class BinaryCacheReader:
    """Reads store paths from binary caches; a :class:`~nixery_core.stores.reader.StoreReader`.

    Every archive is counted and hashed while it is read, against what a trusted key or the path
    itself vouches for; what is listed, or read of a single file, has been verified whole before.

    Listings (``.ls`` files) are signed by nobody.  They are compared with NarSize, and with the
    archive itself when that is read by this reader or a copy of it: a listing that lied fails the
    layer.  ``listings=False`` reads the archive instead, one time more.

    >>> from nixery_core.stores.binary_cache import BinaryCache
    >>> reader = BinaryCacheReader(BinaryCache("https://cache.nixos.org"))
    >>> [cache.url for cache in reader.caches.caches]
    ['https://cache.nixos.org']
    """

    caches: BinaryCaches = attrs.field(converter=BinaryCaches)
    """One cache or several."""
    listings: bool = attrs.field(default=True, kw_only=True)
    """Whether ``.ls`` files may be read in place of archives for :meth:`listing`."""
    _surveys: Surveys = attrs.field(factory=Surveys, init=False, eq=False, repr=False)
    _listed: dict[StorePath, bytes] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* with contents; raises StoreReadError.

        A wrong hash or size is raised in place of the end.  Content is there until the next entry is taken.
        """
        found = self._find(path)
        return self._verified(found, self._listed.get(path))

    def listing(self, path: StorePath) -> Iterator[StoreEntry]:
        """Give every entry of *path* without contents; raises StoreReadError."""
        known = self._surveys.get(path)
        if known is not None:
            return iter(known.entries)
        found = self._find(path)
        listed = self._listing(found) if self.listings else None
        if listed is not None:
            self._surveys.put(path, Survey(listed, verified=False))
            return iter(listed)
        return iter(self._survey(found).entries)

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        """Return up to *size* first bytes of the regular file *name* in *path*; raises StoreReadError."""
        known = self._surveys.get(path)
        head = None if known is None else known.head(name, size)
        if head is None:
            found = self._find(path)
            known = self._survey(found, name, size)
            head = known.head(name, size)
        if head is None:
            raise StoreReadError(f"{path} has no regular file {name.decode(errors='backslashreplace')!r}")
        return head

    def _find(self, path: StorePath) -> Found:
        found = self.caches.find(path)
        if found is None:
            raise PathsNotFound(
                f"{path} is in none of the binary caches",
                hint="name a cache that has it, or build it and copy it to one: nix copy --to",
                missing={str(path): ""},
            )
        return found

    def _verified(self, found: Found, listed: bytes | None) -> Iterator[StoreEntry]:
        info = found.info
        entries = nar_entries(
            self._archive(found),
            nar_hash=info.nar_hash,
            nar_size=info.nar_size,
            where=f"the archive of {info.store_path}",
            file_hash=file_hash(info),
        )
        if listed is None:
            return entries
        return _compared(entries, listed, info.store_path)

    def _archive(self, found: Found) -> Iterator[bytes]:
        """Give the unpacked archive; where a cache fails, the rest comes from another that has the same."""
        done, tried = 0, [found.cache]
        while True:
            info = found.info
            where = found.cache.where(info.url)
            skip = done
            try:
                with closing(unpacked(found.cache.archive(info), info.compression, where)) as pieces:
                    for whole in pieces:
                        piece = whole[skip:] if skip else whole
                        skip -= len(whole) - len(piece)
                        if piece:
                            done += len(piece)
                            yield piece
                if done < info.nar_size:
                    raise StoreReadError(  # noqa: TRY301 - another cache may have the whole
                        f"{where} unpacks to {done} bytes, not to the {info.nar_size} of its NarSize",
                        hint="fetch it again, or from another cache",
                    )
            except StoreReadError:
                other = self.caches.same_elsewhere(found, tried)
                if other is None:
                    raise
                found = other
                tried.append(other.cache)
            else:
                return

    def _survey(self, found: Found, name: bytes | None = None, size: int = 0) -> Survey:
        """Read the whole archive, and keep what is in it and the beginnings of programs, and of *name*."""
        path = found.info.store_path
        survey = Survey([], verified=True)
        for entry in self._verified(found, self._listed.get(path)):
            wanted = size if entry.name == name else HEAD if entry.executable else 0
            if wanted and entry.type is EntryType.REGULAR:
                survey.heads[entry.name] = _beginning(entry, wanted)
            # whole small files are not to be kept
            survey.entries.append(attrs.evolve(entry, data=None, contents=None))
        self._surveys.put(path, survey)
        return survey

    def _listing(self, found: Found) -> list[StoreEntry] | None:
        """Return what the listing of the cache says, or None where it has none that can be right."""
        path = found.info.store_path
        try:
            data = found.cache.file(f"{path.hash}.ls", most=MOST_LISTING)
        except BinaryCacheError:
            # the archive tells the same
            return None
        listed = None if data is None else parse_listing(data, nar_size=found.info.nar_size)
        if listed is not None:
            summary = ListingHash()
            for entry in listed:
                summary.add(entry)
            self._listed[path] = summary.digest()
        return listed


def _compared(entries: Iterator[StoreEntry], listed: bytes, path: StorePath) -> Iterator[StoreEntry]:
    summary = ListingHash()
    with closing(entries):
        for entry in entries:
            summary.add(entry)
            yield entry
    if summary.digest() != listed:
        raise StoreReadError(
            f"the listing of {path} is not that of its archive",
            hint="the cache is damaged or hostile; BinaryCacheReader(..., listings=False) does without listings",
        )


def _beginning(entry: StoreEntry, size: int) -> bytes:
    if entry.contents is None:
        return (entry.data or b"")[:size]
    head = b""
    for piece in entry.contents():
        head += piece[: size - len(head)]
        if len(head) == size:
            break
    return head

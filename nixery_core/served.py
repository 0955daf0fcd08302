"""How often images are served, counted in the storage by any number of processes: popularity of what is really used."""

from __future__ import annotations

import functools
import math
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Self, TypeVar

import attrs

from nixery_core.errors import InvalidConfig, InvalidDocument, NixeryError, ObjectNotFound, StorageError
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.oci import Document
from nixery_core.model.storepath import name_without_version
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import DAYS, SERVED, image_packages_key, served_day_key, served_part_key

FORMAT_VERSION = 1
READERS = 16
"""Objects that are read at once."""

_Document = TypeVar("_Document", bound=Document)
_Name = TypeVar("_Name")
_version = attrs.validators.in_([FORMAT_VERSION])


@attrs.frozen(kw_only=True)
class PackagesOfImage(Document):
    """Which packages an image holds."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=_version)
    packages: tuple[str, ...]
    """Names without version, sorted, each once."""


@attrs.frozen(kw_only=True)
class ServedImage(Document):
    """How often one image was served."""

    image: Digest
    """Its ID."""
    count: int = attrs.field(validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class ServedPart(Document):
    """How often images were served: what one process counted, or what all processes counted on one day."""

    format_version: int = attrs.field(default=FORMAT_VERSION, validator=_version)
    images: tuple[ServedImage, ...]
    parts: tuple[str, ...] = ()
    """The objects of the day that are counted in here, and so nowhere else."""

    @classmethod
    def of(cls, counts: Mapping[Digest, int], parts: Iterable[str] = ()) -> ServedPart:
        """Return the document of *counts*, sorted."""
        images = [ServedImage(image=image, count=counts[image]) for image in sorted(counts, key=str)]
        return cls(images=tuple(images), parts=tuple(sorted(parts)))

    @property
    def counts(self) -> Counter[Digest]:
        """How often each image was served."""
        return Counter({served.image: served.count for served in self.images})


@attrs.frozen(kw_only=True)
class ServedPopularity:
    """What was counted."""

    popularity: Popularity
    """For each package, without version, how many images that were served hold it."""
    served: int
    """How often an image was served, weighted by age, rounded."""
    unknown: int
    """How much of that is of images whose packages nobody wrote down."""


class ServedCounter:
    """Counts served images into a storage, together with every other counter of the same storage.

    A counter writes objects of its own that nobody ever changes, so any number of processes and
    machines count at once and nothing is lost: what was served is the sum of all objects.
    Counting itself is in memory and never waits; :meth:`flush` writes.  What a process counted since
    its last flush is lost if it is killed.

    An image goes by its ID, the digest of its configuration, which is the same in every form of its
    manifest: ``image.manifest.config.digest``.

    Args:
        backend: The storage of the images.
        today: The day that counts belong to; by default that of UTC.

    >>> from nixery_core.storage.plugins import open_backend
    >>> from nixery_core.model.storepath import StorePath
    >>> from nixery_core.model.closure import Closure, PathInfo
    >>> bash = StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15")
    >>> counter, image = ServedCounter(open_backend("memory://served")), Digest.of(b"a configuration")
    >>> counter.describe(image, Closure([PathInfo(bash, 96, [])], [bash]))
    >>> counter.record(image)
    >>> counter.flush()
    >>> counter.popularity().popularity.counts
    {'bash': 1}
    """

    def __init__(self, backend: Backend, *, today: Callable[[], date] | None = None) -> None:
        self._backend = backend
        self._today = today or _today
        self._counting = threading.Lock()
        self._flushing = threading.Lock()
        self._failure: StorageError | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._replica = ""
        self._counts = Counter[Digest]()
        self._waiting: dict[str, bytes] = {}
        self._written = 0

    @property
    def failure(self) -> StorageError | None:
        """Why the last flush failed; None where it did not.  What it should have written is written by the next."""
        return self._failure

    def describe(self, image: Digest, closure: Closure) -> None:
        """Write down which packages the image with the ID *image* holds; raises StorageError.

        It is made to be ``ImageBuilder(on_image=counter.describe)``.
        """
        packages = sorted({name_without_version(info.path.name) for info in closure})
        document = PackagesOfImage(packages=tuple(packages))
        self._backend.create(image_packages_key(image), document.to_bytes(), content_type="application/json")

    def record(self, image: Digest, count: int = 1) -> None:
        """Count that the image with the ID *image* was served; in memory, so it neither waits nor fails.

        It is made to be ``registry_app(on_served=counter.record)``.
        """
        if count < 1:
            raise InvalidConfig(f"an image is served once or more, not {count} times")
        with self._counting:
            self._begin()
            self._counts[image] += count

    def flush(self) -> None:
        """Write what was counted since the last time; raises StorageError, and then the next flush writes it."""
        with self._flushing:
            with self._counting:
                self._begin()
                if self._counts:
                    part = f"{self._replica}-{self._written + len(self._waiting):06}"
                    key = served_part_key(self._today().isoformat(), part)
                    self._waiting[key] = ServedPart.of(self._counts).to_bytes()
                    self._counts = Counter[Digest]()
            try:
                for key, data in list(self._waiting.items()):
                    # after an error it may be there or not: the same bytes under the same key are counted once
                    self._backend.create(key, data, content_type="application/json")
                    del self._waiting[key]
                    self._written += 1
            except StorageError as error:
                self._failure = error
                raise
            self._failure = None

    def start(self, every: float = 60.0, *, on_failure: Callable[[NixeryError], object] | None = None) -> None:
        """Flush *every* so many seconds in a thread, until :meth:`stop`; and compact once a day.

        While the storage fails, counts stay in memory, *on_failure* is told why, and so is
        whoever asks for :attr:`failure`.
        """
        if self._thread is not None:
            raise InvalidConfig("the counter has a thread already", hint="stop it first")
        if not every > 0:
            raise InvalidConfig(f"counts are written every so many seconds, more than 0, not {every}")
        self._stopping.clear()
        self._thread = threading.Thread(
            target=self._run, args=(every, on_failure), name="nixery-core-served", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and flush; raises StorageError."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        self.flush()

    @contextmanager
    def flushing(self, every: float = 60.0) -> Iterator[Self]:
        """Count with a thread that writes, see :meth:`start`, for as long as the block lasts; raises StorageError."""
        self.start(every)
        try:
            yield self
        finally:
            self.stop()

    def _run(self, every: float, on_failure: Callable[[NixeryError], object] | None) -> None:
        compacted: date | None = None
        while not self._stopping.wait(every):
            # what could not be done is done the next time
            try:
                self.flush()
                if self._today() != compacted:
                    self.compact()
                    compacted = self._today()
            except (StorageError, InvalidDocument) as error:
                if on_failure is not None:
                    on_failure(error)

    def popularity(self, *, half_life: float | None = None) -> ServedPopularity:
        """Return in how many served images each package is, as far as it is written.

        Args:
            half_life: Days after which an image that was served counts half; by default it counts for ever.

        Raises:
            StorageError: The storage cannot be read.
            InvalidDocument: An object in it is damaged.
        """
        if half_life is not None and not half_life > 0:
            raise InvalidConfig(f"a half-life is a number of days above 0, not {half_life}")
        today = self._today()
        weights: dict[Digest, list[float]] = {}
        with ThreadPoolExecutor(READERS, "nixery-core-served") as pool:
            read = _Reader(self._backend, pool)
            for day, counts in read.served().items():
                # a day may be tomorrow where clocks differ
                weight = 1.0 if half_life is None else 0.5 ** (max(0, (today - day).days) / half_life)
                for image, count in counts.items():
                    weights.setdefault(image, []).append(count * weight)
            # exact sums do not depend on the order
            served = {image: math.fsum(weights[image]) for image in weights}
            packages = read.many(PackagesOfImage, {image_packages_key(image): image for image in served})
        holders: dict[str, list[float]] = {}
        for image, document in packages.items():
            for name in document.packages:
                holders.setdefault(name, []).append(served[image])
        rounded = {name: _rounded(holders[name]) for name in sorted(holders)}
        return ServedPopularity(
            popularity=Popularity({name: count for name, count in rounded.items() if count}),
            served=_rounded(served.values()),
            unknown=_rounded(count for image, count in served.items() if image not in packages),
        )

    def compact(self, *, forget_after: int | None = None) -> None:
        """Put the parts of each day that is over into one object; any number of processes may do so at once.

        A day is merged once: the object that is created first names its parts, and only those are
        removed.  A part that comes later is not among them, and counts beside it.  So nothing is
        lost or counted twice, wherever this is interrupted.

        Args:
            forget_after: Remove days that are older, in days; by default none.

        Raises:
            StorageError: The storage failed.
            InvalidDocument: An object in it is damaged.
        """
        if forget_after is not None and forget_after < 2:
            raise InvalidConfig(f"days are forgotten after 2 days or more, not {forget_after}")
        today = self._today()
        with ThreadPoolExecutor(READERS, "nixery-core-served") as pool:
            read = _Reader(self._backend, pool)
            for day, names in read.days().items():
                age = (today - day).days
                if forget_after is not None and age > forget_after:
                    self._forget(str(day))
                elif age > 1 and names:
                    # yesterday may still be today for a process whose clock is behind
                    self._merge(str(day), names, read)

    def _merge(self, day: str, names: Collection[str], read: _Reader) -> None:
        key = served_day_key(day)
        merged = read.one(ServedPart, key)
        if merged is None:
            parts = read.many(ServedPart, {served_part_key(day, name): name for name in names})
            if len(parts) < len(names):
                # another process removes them, so it has merged the day
                return
            total = sum((part.counts for part in parts.values()), Counter[Digest]())
            self._backend.create(key, ServedPart.of(total, parts).to_bytes(), content_type="application/json")
            # of two that merged it at once, the first was kept
            merged = read.one(ServedPart, key)
        if merged is not None:
            for name in set(merged.parts) & set(names):
                self._backend.delete(served_part_key(day, name))

    def _forget(self, day: str) -> None:
        # the parts first: without the merged object they would count again
        for info in self._backend.list(f"{SERVED}{day}/"):
            self._backend.delete(info.key)
        self._backend.delete(served_day_key(day))

    def _begin(self) -> None:
        """Be a replica of this process; in a child process, what the parent counted is the parent's."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._replica = uuid.uuid4().hex
            self._counts = Counter[Digest]()
            self._waiting = {}
            self._written = 0


@attrs.frozen
class _Reader:
    """Reads what counters wrote, while others write and merge."""

    backend: Backend
    pool: ThreadPoolExecutor

    def served(self) -> dict[date, Counter[Digest]]:
        """Return what was counted on each day."""
        days = self.days()
        keys = {served_part_key(str(day), name): (day, name) for day, names in days.items() for name in names}
        parts = self.many(ServedPart, keys)
        # last: as long as a day has no such object, none of its parts was removed; else it holds what was
        merged = self.many(ServedPart, {served_day_key(str(day)): day for day in days})
        done = {(day, name) for day, document in merged.items() for name in document.parts}
        total = {day: merged[day].counts if day in merged else Counter[Digest]() for day in days}
        for (day, name), part in parts.items():
            if (day, name) not in done:
                total[day] += part.counts
        return total

    def days(self) -> dict[date, list[str]]:
        """Return every day of which there is something, with its parts."""
        # the parts first: a day that is merged in between is seen at least once
        served = [info.key.removeprefix(SERVED).partition("/") for info in self.backend.list(SERVED)]
        days = [info.key.removeprefix(DAYS) for info in self.backend.list(DAYS)]
        found: dict[date, list[str]] = {day: [] for name in days if (day := _day(name)) is not None}
        for name, _, part in served:
            day = _day(name)
            if day is not None:
                found.setdefault(day, []).append(part)
        return dict(sorted(found.items()))

    def one(self, cls: type[_Document], key: str) -> _Document | None:
        try:
            return cls.from_bytes(self.backend.get(key))
        except ObjectNotFound:
            return None

    def many(self, cls: type[_Document], keys: Mapping[str, _Name]) -> dict[_Name, _Document]:
        """Return those objects that are there, by the name that *keys* has for them."""
        found = self.pool.map(functools.partial(self.one, cls), keys)
        return {name: document for name, document in zip(keys.values(), found, strict=True) if document is not None}


def _today() -> date:
    return datetime.now(UTC).date()


def _day(name: str) -> date | None:
    try:
        return date.fromisoformat(name)
    except ValueError:
        return None


def _rounded(weights: Iterable[float]) -> int:
    return math.floor(math.fsum(weights) + 0.5)

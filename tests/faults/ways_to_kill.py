"""When builds are killed, in a directory and in a bucket; learnt from builds that are not."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from build_target import BUILT, READY, Images, Storage, Target
from killed_process import Kill, Tell, Told, die, in_child
from object_requests import large_blobs, watch_requests

from nixery_core.storage.object_store_backend import ObjectStoreBackend

# with the pin the name begins to be published
_PUBLISHES = "/gc/pins"


class Ways(Protocol):
    """Some ways to kill a build."""

    names: tuple[str, ...]

    def huge(self, number: int) -> bool:
        """Return whether image *number* has a layer of many MiB."""
        ...

    def kill(self, way: str, target: Target, storage: Storage) -> Told:
        """Begin to build *target*, and kill it; it may have been faster."""
        ...


def ways(storage: Storage, images: Images) -> Ways:
    """Return the ways that fit *storage*; builds some images of negative numbers in it."""
    if storage.directory:
        return DirectoryWays(storage, images)
    if isinstance(storage.open(), ObjectStoreBackend):
        return BucketWays(storage, images)
    return AnyStorageWays(storage, images)


class AnyStorageWays:
    """At a random time."""

    names: tuple[str, ...] = ("time",)

    def __init__(self, storage: Storage, images: Images) -> None:
        self._generator = random.Random(f"ways {images.seed}")
        # then the library is stored, as it is in most builds that follow
        in_child(lambda tell: images.target(-1, huge=False).build(storage, tell))
        self._seconds: dict[bool, float] = {}
        for target in (images.target(-2, huge=False), images.target(-3, huge=True)):
            built = in_child(lambda tell, target=target: target.build(storage, tell))
            self._seconds[target.huge > 0] = built.seconds(READY, BUILT)

    def huge(self, number: int) -> bool:
        """Return whether it is one of four."""
        return number % 4 == 0

    def kill(self, way: str, target: Target, storage: Storage) -> Told:
        """Begin to build *target*, and kill it."""
        seconds = self._generator.uniform(0.0, self._seconds[target.huge > 0])
        return in_child(lambda tell: target.build(storage, tell), kill=Kill(READY, seconds))


class DirectoryWays(AnyStorageWays):
    """At a random time, and before random operations on files."""

    # one of four images is huge, so huge ones come to all three
    names = ("time", "operation", "publish")

    def __init__(self, storage: Storage, images: Images) -> None:
        super().__init__(storage, images)
        operations = _operations(images.target(-4, huge=False), storage)
        first = next(number for number, operation in enumerate(operations) if _PUBLISHES in operation)
        self._count = {"operation": len(operations), "publish": len(operations) - first}

    def kill(self, way: str, target: Target, storage: Storage) -> Told:
        """Begin to build *target*, and kill it."""
        if way == "time":
            return super().kill(way, target, storage)
        at = self._generator.randrange(self._count[way])

        def work(tell: Tell) -> Any:
            count = 0

            def before_each(operation: str) -> None:
                nonlocal count
                # how many operations come before depends on which layers are stored
                if way == "operation" or count or _PUBLISHES in operation:
                    count += 1
                if count > at:
                    die()

            assert storage.directory
            _watch_operations(storage.directory, before_each)
            return target.build(storage, tell)

        return in_child(work)


class BucketWays:
    """At a random time, before random requests, and where large blobs are sent and published."""

    names = ("time", "parts", "request", "publish")

    def __init__(self, storage: Storage, images: Images) -> None:
        self._generator = random.Random(f"ways {images.seed}")
        self._by_itself: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[tuple[str, bool], float] = {}
        self._requests: dict[tuple[str, bool], int] = {}
        self._sending: dict[str, float] = {}
        self._publishing: dict[str, float] = {}
        self._steps: dict[str, list[str]] = {}
        # then the library is stored, as it is in most builds that follow
        in_child(lambda tell: images.target(-1, huge=False).build(storage, tell))
        numbers = itertools.count(-2, -1)
        for turn, one in storage.by_turns().items():
            for huge in (False, True):
                told = in_child(_watched(images.target(next(numbers), huge=huge), one))
                self._seconds[turn, huge] = told.seconds(READY, BUILT)
                self._requests[turn, huge] = sum(line.startswith("+") for line in told.lines)
            # a way to send large blobs may hold that this one is not large
            for key, steps in large_blobs(told.lines).items():
                self._learn(turn, told, key, steps[steps.index("+complete_upload") :])

    def _learn(self, turn: str, told: Told, key: str, steps: list[str]) -> None:
        self._steps[turn] = steps
        self._sending[turn] = told.seconds(f"+start_upload {key}", f"+complete_upload {key}")
        self._publishing[turn] = told.seconds(f"+complete_upload {key}", f"{steps[-1]} {key}")

    def huge(self, number: int) -> bool:
        """Return whether it is one that is killed while parts are sent or published, or every fifth of the others."""
        return number % len(self.names) in (1, 3) or number // len(self.names) % 5 == 4

    def kill(self, way: str, target: Target, storage: Storage) -> Told:
        """Begin to build *target*, and kill it."""
        chance, turn = self._generator, _turn(storage)
        if way == "time" or (way != "request" and turn not in self._steps):
            return _from_outside(target, storage, READY, chance.uniform(0.0, self._seconds[turn, target.huge > 0]))
        if way == "request":
            at = chance.randrange(self._requests[turn, target.huge > 0])
            return _by_itself(target, storage, _Count("+", at))
        self._by_itself[way, turn] += 1
        by_itself = self._by_itself[way, turn] % 2 == 1
        if way == "parts":
            if by_itself:
                return _by_itself(target, storage, _Count("+upload_part ", chance.randrange(target.full_parts)))
            return _from_outside(target, storage, "+start_upload ", chance.uniform(0.0, self._sending[turn]))
        if by_itself:
            return _by_itself(target, storage, _Step(chance.choice(self._steps[turn])))
        return _from_outside(target, storage, "+complete_upload ", chance.uniform(0.0, self._publishing[turn]))


class _Count:
    """Tells whether a line is number *at*, from 0, of those that begin so."""

    def __init__(self, begin: str, at: int) -> None:
        self._begin, self._left = begin, at

    def __call__(self, line: str) -> bool:
        if not line.startswith(self._begin):
            return False
        self._left -= 1
        return self._left < 0


class _Step:
    """Tells whether a line is about an upload, and is *step* of its publication."""

    def __init__(self, step: str) -> None:
        self._step, self._key = step, ""

    def __call__(self, line: str) -> bool:
        step, _, key = line.partition(" ")
        if step == "+complete_upload":
            self._key = key
        return step == self._step and key == self._key


def _turn(storage: Storage) -> str:
    ((turn, _),) = storage.by_turns().items()
    return turn


def _from_outside(target: Target, storage: Storage, after: str, seconds: float) -> Told:
    return in_child(_watched(target, storage), kill=Kill(after, seconds))


def _by_itself(target: Target, storage: Storage, when: Callable[[str], bool]) -> Told:
    return in_child(_watched(target, storage, when))


def _watched(
    target: Target, storage: Storage, when: Callable[[str], bool] = lambda line: False
) -> Callable[[Tell], dict[str, str]]:
    def work(tell: Tell) -> dict[str, str]:
        def told(line: str) -> None:
            tell(line)
            if when(line):
                die()

        watch_requests(storage.open(), told)
        return target.build(storage, tell)

    return work


def _watch_operations(directory: str, before_each: Callable[[str], object]) -> None:
    """Call *before_each* with the name of each operation of this process on files in *directory*."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
            # of two paths the second is where it goes
            paths = [str(path) for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            if paths and paths[-1].startswith(directory):
                before_each(f"{event} {paths[-1].removeprefix(directory)}")

    sys.addaudithook(hook)


def _operations(target: Target, storage: Storage) -> list[str]:
    """Return the operations of a build that nobody kills."""

    def work(tell: Tell) -> list[str]:
        seen: list[str] = []
        assert storage.directory
        _watch_operations(storage.directory, seen.append)
        target.build(storage, tell)
        return seen

    found: list[str] = in_child(work).result
    return found

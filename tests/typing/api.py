"""Code as users of the library write it: never run, checked by mypy --strict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import assert_type

import attrs

from nixery_core import (
    Backend,
    BatchResult,
    BuildEvent,
    Cancellation,
    Closure,
    ContainerConfig,
    CustomFile,
    Descriptor,
    Digest,
    DominatorLayerer,
    GitRepository,
    Image,
    ImageBuilder,
    ImagePlan,
    ImageSpec,
    Layerer,
    LayerPlan,
    LocalPath,
    MetaPackage,
    Nix,
    NixpkgsChannel,
    PackageSource,
    Pin,
    Platform,
    Popularity,
    SingleLayerer,
    StorePath,
    UnitsLayerer,
    open_backend,
)
from nixery_core.compression import Codec, codec
from nixery_core.errors import BinaryCacheError, NixeryError, PackageError, PackageProblem
from nixery_core.events import EventCallback, LayerBuilt
from nixery_core.layer_writer import BuiltLayer
from nixery_core.layering import PerPathLayerer
from nixery_core.model.package import ResolvedPackage
from nixery_core.popcount.counting import ClosureCounts, count_closures
from nixery_core.popcount.walk import NarInfoSource, walk_closures
from nixery_core.served import ServedCounter
from nixery_core.storage.backend import BackendRef, BlobWriter, ObjectInfo
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.local import LocalBackend
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.binary_caches import BinaryCaches, Found
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.reader import StoreEntry, StoreReader
from nixery_core.stores.realiser import Realisation, Realiser
from nixery_core.testing.memory_realiser import MemoryRealiser
from nixery_core.testing.memory_store import MemoryStore

# what everyone writes first


def build() -> str:
    builder = ImageBuilder(NixpkgsChannel("nixos-unstable"), open_backend("file:///var/lib/images"))
    image = builder.build(ImageSpec.parse("shell/git"))
    assert_type(image, Image)
    assert_type(image.descriptor, Descriptor)
    assert_type(image.descriptor.digest, Digest)
    assert_type(image.layers, tuple[BuiltLayer, ...])
    assert_type(image.revision, str | None)
    assert_type(builder.plan(image.spec), ImagePlan)
    for result in builder.build_many([image.spec], at_once=2):
        assert_type(result, BatchResult)
        assert_type(result.image, Image | None)
        assert_type(result.error, NixeryError | None)
    return str(image.descriptor.digest)


def every_argument(pool: ThreadPoolExecutor, token: Cancellation) -> Image:
    builder = ImageBuilder(
        GitRepository("https://example.org/set", ref="main", ttl=60, import_args={"config": {"allowUnfree": True}}),
        open_backend("s3://bucket/prefix", endpoint_url="http://127.0.0.1:9000"),
        realiser=Nix(store="/srv/nix", options={"max-jobs": "2"}, timeout=60, max_silent=None),
        layerer=UnitsLayerer(),
        popularity=Popularity({"glibc": 70_000}),
        codec="zstd:19",
        budget=60,
        executor=pool,
        workers=2,
    )
    spec = ImageSpec(
        packages=["git", "python3Packages.six"],
        optional=(),
        platform=Platform.parse("arm64"),
        tag="main",
        config=ContainerConfig(env=("A=b",), exposed_ports=["80"], volumes={"/data"}, user="app"),
        files=[CustomFile(path="/etc/motd", content=b"hello")],
    )
    words = {"web": MetaPackage(packages=("nginx",))}
    ImageSpec.parse("web/git", meta_packages=words, implied=[])
    return builder.build(spec, on_event=follow, cancellation=token)


def follow(event: BuildEvent) -> None:
    match event:
        case LayerBuilt(size=size, digest=digest):
            assert_type(size, int)
            assert_type(digest, str)


callback: EventCallback = follow


def popularity(source: NarInfoSource, roots: list[StorePath]) -> Popularity:
    walk = walk_closures(roots, [source, BinaryCache("https://cache.nixos.org")], allow_missing=True)
    assert_type(count_closures(walk.facts, roots), ClosureCounts)
    backend = open_backend("memory://images")
    counter = ServedCounter(backend)
    ImageBuilder(NixpkgsChannel("nixos-unstable"), backend, on_image=counter.describe)
    with counter.flushing(every=60) as counting:
        assert_type(counting, ServedCounter)
        counting.record(Digest.of(b"configuration"))
    return counter.popularity(half_life=30).popularity


def failed(error: NixeryError) -> tuple[str, str]:
    if isinstance(error, PackageError):
        assert_type(error.problems, tuple[PackageProblem, ...])
    return error.message, error.hint


# what users bring themselves needs no base class


@attrs.frozen
class Mirror:
    url: str

    def pin(self, tag: str) -> Pin:
        return Pin(kind="mirror", url=self.url, revision=None, fetch={"type": "tarball", "url": self.url})


class OwnCache:
    def answers(self, paths: Iterable[StorePath]) -> Iterator[tuple[StorePath, NarInfo | BinaryCacheError | None]]:
        return ((path, None) for path in paths)


assert_type(popularity(OwnCache(), []), Popularity)


class OneLayer:
    @property
    def id(self) -> str:
        return "one 1"

    def plan(self, closure: Closure, popularity: Popularity, budget: int) -> list[LayerPlan]:
        return [LayerPlan([info.path for info in closure], closure.nar_size)]


class Writer:
    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def commit(self, digest: Digest) -> None: ...

    def cancel(self) -> None: ...


class Storage:
    @property
    def ref(self) -> BackendRef:
        return BackendRef("mine://")

    def open_blob(self) -> Writer:
        return Writer()

    def create(self, key: str, data: bytes, *, content_type: str = "") -> bool:
        return True

    def replace(self, key: str, data: bytes, *, content_type: str = "") -> None: ...

    def get(self, key: str) -> bytes:
        return b""

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        yield b""

    def stat(self, key: str) -> ObjectInfo | None:
        return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from ()

    def delete(self, key: str) -> None: ...


class Reader:
    def entries(self, path: StorePath) -> Iterator[StoreEntry]:
        yield from ()

    def listing(self, path: StorePath) -> Iterator[StoreEntry]:
        yield from ()

    def read_head(self, path: StorePath, name: bytes, size: int) -> bytes:
        return b""


class Cache:
    """A realiser."""

    @property
    def id(self) -> str:
        return "cache 1"

    def evaluate(
        self,
        pin: Pin,
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,
        *,
        on_event: EventCallback,
        cancellation: Cancellation,
    ) -> tuple[ResolvedPackage, ...]:
        return ()

    def realise(
        self, packages: Sequence[ResolvedPackage], *, on_event: EventCallback, cancellation: Cancellation
    ) -> AbstractContextManager[Realisation]:
        raise NotImplementedError


sources: list[PackageSource] = [Mirror("x"), NixpkgsChannel("x"), GitRepository("x"), LocalPath("x")]
layerers: list[Layerer] = [OneLayer(), UnitsLayerer(), DominatorLayerer(), PerPathLayerer(), SingleLayerer()]
backends: list[Backend] = [Storage(), LocalBackend("x"), FsspecBackend("memory://x")]
writers: list[BlobWriter] = [Writer(), backends[0].open_blob()]
readers: list[StoreReader] = [Reader(), MemoryStore({})]
realisers: list[Realiser] = [Cache(), Nix(), MemoryRealiser({})]
codecs: list[Codec] = [codec("gzip")]

# mistakes that a type checker finds; an ignore that is not needed is an error of --strict

ImageBuilder("nixos-unstable", open_backend("x"))  # type: ignore[arg-type]
ImageBuilder(NixpkgsChannel("nixos-unstable"), "file:///images")  # type: ignore[arg-type]
ImageSpec.parse("git").packages = ()  # type: ignore[misc]
ImageSpec(("git",))  # type: ignore[call-arg]
BlobWriter()  # type: ignore[misc]


# binary caches


def read_a_cache(path: StorePath) -> StoreReader:
    cache = BinaryCache("https://cache.nixos.org", ["cache.nixos.org-1", "own-1:..."], priority=10)
    scratch = BinaryCache("file:///srv/cache", allow_unsigned=True)
    assert_type(cache.narinfo(path), NarInfo | None)
    for found, info in cache.narinfos([path]):
        assert_type(found, StorePath)
        assert_type(info, NarInfo | None)
    assert_type(BinaryCaches([cache, scratch]).find(path), Found | None)
    assert_type(cached_closure(cache, [path]), Closure)
    assert_type(cached_closure([cache, scratch], [path], cancellation=Cancellation()), Closure)
    reader = BinaryCacheReader([cache, scratch], listings=False)
    return BinaryCacheReader(reader.caches)

"""Store paths from binary caches: the layers of a directory, and nothing published where anything is wrong."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from nixery_core.errors import BinaryCacheError, InvalidConfig, PathsNotFound, StoreReadError, UntrustedPath
from nixery_core.layer_writer import BuiltLayer, LayerJob, build_layer
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.binary_caches import BinaryCaches
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.nix_store import DirectoryReader
from nixery_core.stores.reader import StoreReader
from nixery_core.testing.binary_cache import SigningKey, listing_bytes, nar_bytes, write_cache
from nixery_core.testing.file_server import Answer, FileServer, Request
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink, Tree
from nixery_core.testing.trees import write_store

KEY = SigningKey("lab-1", b"k" * 32)
LIBRARY = StorePath("1" * 32, "library-1.0")
PROGRAM = StorePath("2" * 32, "program-2.0")
TOP = StorePath("3" * 32, "top")
TREES: dict[StorePath, Tree] = {
    LIBRARY: {"lib": {"large.so": bytes(range(256)) * 5_000, "empty": b"", "z": {}}},
    PROGRAM: {
        "bin": {"run": Executable(b"#!/bin/sh\n" * 100), "also": SymbolicLink("run")},
        "etc": {"conf": b"c" * 5000},
    },
    TOP: SymbolicLink(f"{PROGRAM}/bin/run"),
}
STORE = MemoryStore(TREES)
REFERENCES = {PROGRAM: [LIBRARY, PROGRAM], TOP: [PROGRAM]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", STORE, references=REFERENCES, keys=[KEY], compression="zstd")
    return tmp_path / "cache"


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return open_backend(str(tmp_path / "images"))


def at(url: str | Path, **arguments: object) -> BinaryCache:
    return BinaryCache(str(url), KEY.public, **{"retries": 1, "timeout": 5.0, **arguments})


def layer(reader: StoreReader, backend: Backend, *paths: StorePath) -> BuiltLayer:
    """Write a layer as a worker does: from a job that was pickled."""
    job = LayerJob(
        paths=paths or tuple(TREES), nar_size=1, layer_key="k" * 64, reader=reader, backend=backend.ref, codec="gzip"
    )
    return build_layer(pickle.loads(pickle.dumps(job)))


def archive_of(folder: Path, path: StorePath) -> Path:
    info = at(folder).narinfo(path)
    assert info is not None
    return folder / info.url


def published(backend: Backend) -> list[str]:
    return [found.key for found in backend.list("")]


class TestContent:
    @pytest.mark.parametrize("compression", ["none", "xz", "bzip2", "gzip", "zstd", "br"])
    def test_the_layer_is_that_of_a_directory(self, tmp_path: Path, compression: str) -> None:
        """For each compression the layer has the digest that the same files in a directory give."""
        write_cache(tmp_path / "cache", STORE, keys=[KEY], compression=compression)
        write_store(STORE, tmp_path / "store")
        from_cache = layer(BinaryCacheReader(at(tmp_path / "cache")), open_backend(str(tmp_path / "a")))
        from_files = layer(DirectoryReader(str(tmp_path / "store")), open_backend(str(tmp_path / "b")))
        assert from_cache == from_files

    @pytest.mark.parametrize("listings", [True, False])
    def test_what_is_listed(self, tmp_path: Path, listings: bool) -> None:
        """A listing gives the same entries from a .ls file and from the archive."""
        write_cache(tmp_path, STORE, keys=[KEY], listings=listings)
        reader = BinaryCacheReader(at(tmp_path))
        for path in TREES:
            assert list(reader.listing(path)) == list(STORE.listing(path))
            assert all(entry.contents is None for entry in reader.listing(path))

    def test_beginnings_of_files(self, folder: Path) -> None:
        """The first bytes of any file can be read, and those of what is no file are an error."""
        reader = BinaryCacheReader(at(folder))
        cases = [(PROGRAM, b"bin/run", 20), (PROGRAM, b"etc/conf", 4096), (LIBRARY, b"lib/large.so", 2_000_000)]
        for path, name, size in [*cases, (LIBRARY, b"lib/empty", 10)]:
            assert reader.read_head(path, name, size) == STORE.read_head(path, name, size)
        for name in (b"bin", b"bin/also", b"nothing", b""):
            with pytest.raises(StoreReadError, match="no regular file"):
                reader.read_head(PROGRAM, name, 10)

    def test_an_archive_is_not_fetched_for_every_question(self, tmp_path: Path) -> None:
        """The links of an image ask about many files; each archive is read once for all of that."""
        write_cache(tmp_path, STORE, keys=[KEY])
        with FileServer(tmp_path) as server:
            reader = BinaryCacheReader(at(server.url))
            for _ in range(3):
                list(reader.listing(PROGRAM))
                reader.read_head(PROGRAM, b"bin/run", 256)
            assert server.asked(".nar") == 1
            assert server.asked(".narinfo") == 1

    def test_a_listing_spares_the_archive(self, tmp_path: Path) -> None:
        """Where the cache has a .ls file, nothing else is fetched to list a path."""
        write_cache(tmp_path, STORE, keys=[KEY], listings=True)
        with FileServer(tmp_path) as server:
            reader = BinaryCacheReader(at(server.url))
            assert list(reader.listing(PROGRAM)) == list(STORE.listing(PROGRAM))
            assert (server.asked(".nar"), server.asked(".ls")) == (0, 1)


class TestClosure:
    def test_references_are_followed(self, folder: Path) -> None:
        """Everything that is referred to is there, with the facts of the archives; itself counts as a reference."""
        closure = cached_closure(at(folder), [TOP])
        assert {info.path for info in closure} == {TOP, PROGRAM, LIBRARY}
        assert closure.roots == (TOP,)
        assert closure[PROGRAM].references == (LIBRARY, PROGRAM)
        assert closure[LIBRARY].nar_size == len(nar_bytes(TREES[LIBRARY]))
        assert closure[LIBRARY].nar_hash == Digest.of(nar_bytes(TREES[LIBRARY]))

    def test_all_missing_paths_are_told_at_once(self, folder: Path) -> None:
        """What no cache has is listed whole, each with a path that refers to it."""
        (folder / f"{LIBRARY.hash}.narinfo").unlink()
        absent = StorePath("4" * 32, "absent")
        with pytest.raises(PathsNotFound) as caught:
            cached_closure(at(folder), [TOP, absent])
        assert caught.value.missing == {str(LIBRARY): str(PROGRAM), str(absent): ""}
        text = caught.value.diagnostics()
        assert "2 store paths" in text
        assert f"{LIBRARY}, which {PROGRAM} refers to" in text
        assert str(folder) in text

    def test_references_in_a_circle(self, tmp_path: Path) -> None:
        """What no store can hold is refused, also when it is signed."""
        write_cache(tmp_path, STORE, references={PROGRAM: [LIBRARY], LIBRARY: [PROGRAM]}, keys=[KEY])
        with pytest.raises(BinaryCacheError, match="cycle"):
            cached_closure(at(tmp_path), [PROGRAM])

    def test_a_web_server_is_asked_once_a_path(self, folder: Path) -> None:
        """A path that several refer to is asked for once, and the reader asks for none again."""
        with FileServer(folder) as server:
            cache = at(server.url)
            cached_closure(cache, [TOP, PROGRAM])
            list(BinaryCacheReader(cache).entries(TOP))
            assert server.asked(".narinfo") == 3


class TestSeveralCaches:
    @pytest.fixture
    def second(self, tmp_path: Path) -> Path:
        """Another cache of everything, packed in another way and asked later."""
        write_cache(tmp_path / "second", STORE, references=REFERENCES, keys=[KEY], compression="xz")
        (tmp_path / "second" / "nix-cache-info").write_text("StoreDir: /nix/store\nPriority: 90\n")
        return tmp_path / "second"

    def test_the_smallest_priority_is_asked_first(self, folder: Path, second: Path) -> None:
        """The cache says its priority, and the caller may say another."""
        for caches, first in (
            ([at(second), at(folder)], folder),
            ([at(second, priority=1), at(folder)], second),
            ([at(second), at(folder, priority=90)], second),
        ):
            found = BinaryCaches(caches).find(TOP)
            assert found is not None
            assert found.cache.url == str(first)

    def test_a_path_that_one_does_not_have_comes_from_the_next(self, folder: Path, second: Path) -> None:
        """A closure may be spread over caches."""
        (folder / f"{PROGRAM.hash}.narinfo").unlink()
        (second / f"{TOP.hash}.narinfo").unlink()
        caches = BinaryCaches([at(folder), at(second)])
        assert len(cached_closure(caches, [TOP])) == 3
        assert [entry.name for entry in BinaryCacheReader(caches).entries(PROGRAM)][:2] == [b"", b"bin"]

    def test_a_cache_that_is_gone_is_passed_over(self, second: Path) -> None:
        """An unreachable cache costs time and not the build, as long as another has the paths."""
        gone = BinaryCache("http://127.0.0.1:1", KEY.public, retries=0, priority=1)
        assert len(cached_closure([gone, at(second)], [TOP])) == 3
        with pytest.raises(BinaryCacheError, match=r"127\.0\.0\.1:1"):
            cached_closure([gone, at(second)], [StorePath("4" * 32, "absent")])

    def test_a_path_that_one_has_unsigned_comes_from_the_next(self, folder: Path, second: Path) -> None:
        """A cache that lies cannot keep the others from telling the truth."""
        info = (folder / f"{TOP.hash}.narinfo").read_bytes()
        (folder / f"{TOP.hash}.narinfo").write_bytes(info.replace(b"NarSize: ", b"NarSize: 1"))
        found = BinaryCaches([at(folder), at(second)]).find(TOP)
        assert found is not None
        assert found.cache.url == str(second)
        with pytest.raises(UntrustedPath):
            BinaryCaches([at(folder)]).find(TOP)

    @pytest.mark.parametrize("damage", ["gone", "cut short", "garbage behind"])
    def test_the_rest_of_an_archive_comes_from_the_next(
        self, folder: Path, second: Path, tmp_path: Path, backend: Backend, damage: str
    ) -> None:
        """Where an archive breaks off, the other cache goes on at the same byte, and the layer is the same."""
        write_store(STORE, tmp_path / "store")
        file = archive_of(folder, LIBRARY)
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(data[: len(data) // 2] + (b"?" * 100 if damage == "garbage behind" else b""))
        reader = BinaryCacheReader([at(folder), at(second)])
        expected = layer(DirectoryReader(str(tmp_path / "store")), open_backend(str(tmp_path / "b")))
        assert layer(reader, backend) == expected
        with pytest.raises(StoreReadError):
            layer(BinaryCacheReader(at(folder)), open_backend(str(tmp_path / "c")))

    def test_no_cache_at_all(self) -> None:
        """An empty list is an error before anything else."""
        with pytest.raises(InvalidConfig):
            BinaryCaches([])


def flip(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


class TestNothingIsPublished:
    @pytest.mark.parametrize(
        "damage",
        [flip, lambda data: data[:-20], lambda data: data + bytes(8), lambda data: b"", lambda data: b"?" * 100],
        ids=["one bit", "cut short", "longer", "empty", "something else"],
    )
    @pytest.mark.parametrize("compression", ["none", "xz", "gzip"])
    def test_a_damaged_archive(
        self, tmp_path: Path, backend: Backend, compression: str, damage: Callable[[bytes], bytes]
    ) -> None:
        """A changed, cut or longer archive fails the layer with the name of the path, and leaves no blob."""
        write_cache(tmp_path / "cache", STORE, keys=[KEY], compression=compression)
        file = archive_of(tmp_path / "cache", LIBRARY)
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(StoreReadError):
            layer(BinaryCacheReader(at(tmp_path / "cache")), backend, LIBRARY)
        assert published(backend) == []

    @pytest.mark.parametrize("compression", ["xz", "bzip2", "gzip", "zstd", "br"])
    def test_a_bomb(self, tmp_path: Path, backend: Backend, compression: str) -> None:
        """What unpacks to more than NarSize is stopped there."""
        cache = tmp_path / "cache"
        write_cache(cache, STORE, keys=[KEY], compression=compression)
        info = at(cache).narinfo(LIBRARY)
        assert info is not None
        other = write_cache(tmp_path / "bomb", MemoryStore({LIBRARY: bytes(4 << 20)}), compression=compression)[LIBRARY]
        (cache / info.url).write_bytes((tmp_path / "bomb" / other.url).read_bytes())
        with pytest.raises(StoreReadError, match=r"more than the whole archive can hold|more bytes than the"):
            layer(BinaryCacheReader(at(cache)), backend, LIBRARY)
        assert published(backend) == []

    def test_the_archive_of_another_path(self, folder: Path, backend: Backend) -> None:
        """A whole archive of something else is refused by its hash or size."""
        archive_of(folder, LIBRARY).write_bytes(archive_of(folder, PROGRAM).read_bytes())
        with pytest.raises(StoreReadError, match=r"unpacks to \d+ bytes, not to the \d+ of its NarSize"):
            layer(BinaryCacheReader(at(folder)), backend, LIBRARY)
        assert published(backend) == []

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (Answer(404), "there is no http"),
            (Answer(500), "answered 500"),
            (Answer(200, bytes(1000), cut_after=10), "cannot be read"),
        ],
        ids=["404", "500", "breaks off"],
    )
    def test_a_cache_that_fails_in_the_middle(
        self, folder: Path, backend: Backend, answer: Answer, message: str
    ) -> None:
        """A web server that has lost the archive, or cannot send it, fails the layer."""
        name = archive_of(folder, PROGRAM).name

        def respond(request: Request, times: int) -> Answer | None:
            return answer if request.path.endswith(name) else None

        with FileServer(folder, respond) as server, pytest.raises(BinaryCacheError, match=message):
            layer(BinaryCacheReader(at(server.url)), backend)
        assert published(backend) == []

    def test_a_cache_that_falls_silent(self, folder: Path, backend: Backend) -> None:
        """A web server that says nothing more is given up after the timeout."""
        name, silence = archive_of(folder, PROGRAM).name, threading.Event()
        slow = Answer(before=lambda: silence.wait(20))
        with FileServer(folder, lambda request, _: slow if request.path.endswith(name) else None) as server:
            with pytest.raises(BinaryCacheError, match="timed out"):
                layer(BinaryCacheReader(at(server.url, retries=0, timeout=0.2)), backend)
            silence.set()
        assert published(backend) == []

    def test_a_compression_that_nobody_knows(self, folder: Path, backend: Backend) -> None:
        """The error names what is known; the field is not signed, so anything may stand there."""
        file = folder / f"{LIBRARY.hash}.narinfo"
        file.write_bytes(file.read_bytes().replace(b"Compression: zstd", b"Compression: lrzip"))
        with pytest.raises(StoreReadError, match="lrzip") as caught:
            layer(BinaryCacheReader(at(folder)), backend)
        assert "zstd" in caught.value.hint

    def test_a_path_that_no_cache_has(self, folder: Path, backend: Backend) -> None:
        """A layer of a path that is gone is an error with its name."""
        absent = StorePath("4" * 32, "absent")
        with pytest.raises(PathsNotFound, match=str(absent)):
            layer(BinaryCacheReader(at(folder)), backend, LIBRARY, absent)
        assert published(backend) == []


class TestListings:
    """Listings are signed by nobody."""

    def forge(self, folder: Path, tree: Tree) -> BinaryCacheReader:
        write_cache(folder, STORE, keys=[KEY], listings=True)
        (folder / f"{PROGRAM.hash}.ls").write_bytes(listing_bytes(tree))
        return BinaryCacheReader(at(folder))

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000, b'{"version":1,"root":{"type":"directory"}}'])
    def test_what_is_no_listing_is_passed_over(self, tmp_path: Path, data: bytes) -> None:
        """The archive tells the same."""
        reader = self.forge(tmp_path, {})
        (tmp_path / f"{PROGRAM.hash}.ls").write_bytes(data)
        assert list(reader.listing(PROGRAM)) == list(STORE.listing(PROGRAM))

    def test_the_listing_of_another_archive_is_passed_over(self, tmp_path: Path) -> None:
        """Its size is not NarSize."""
        reader = self.forge(tmp_path, {"bin": {"more": b"x"}})
        assert list(reader.listing(PROGRAM)) == list(STORE.listing(PROGRAM))

    def test_a_forged_listing_fails_the_layer(self, tmp_path: Path, backend: Backend) -> None:
        """A listing of the right size that tells of another file is found out when the layer is written."""
        forged = {"bin": {"sun": Executable(b"?" * 1000), "also": SymbolicLink("run")}, "etc": {"conf": b"?" * 5000}}
        reader = self.forge(tmp_path, forged)
        assert b"bin/sun" in [entry.name for entry in reader.listing(PROGRAM)]
        with pytest.raises(StoreReadError, match="listing"):
            layer(reader, backend, PROGRAM)
        assert published(backend) == []

    def test_going_without(self, tmp_path: Path) -> None:
        """listings=False believes archives alone."""
        self.forge(tmp_path, {"bin": {"sun": Executable(b"?" * 1000)}})
        reader = BinaryCacheReader(at(tmp_path), listings=False)
        assert list(reader.listing(PROGRAM)) == list(STORE.listing(PROGRAM))


class TestContentAddresses:
    def test_a_file_that_is_not_the_one_of_its_address(self, tmp_path: Path, backend: Backend) -> None:
        """Without a signature, the content itself must be right: NarHash alone proves nothing."""
        path = StorePath.parse("iixxin28s82lrxs8v4lcf7nha2dkwprm-hello.txt")
        address = "fixed:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic"
        for content, right in ((b"hello", True), (b"hallo", False)):
            cache = tmp_path / str(right)
            info = write_cache(cache, MemoryStore({path: content}))[path]
            (cache / f"{path.hash}.narinfo").write_bytes(attrs.evolve(info, content_address=address).to_bytes())
            reader = BinaryCacheReader(at(cache))
            if right:
                assert layer(reader, open_backend(str(tmp_path / "right")), path)
                continue
            with pytest.raises(StoreReadError, match="content address"):
                layer(reader, backend, path)
            assert published(backend) == []

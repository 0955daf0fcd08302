"""Reading store paths from a directory."""

import os
import pickle
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery_core.archive import ArchiveEntry, store_entries, write_archive
from nixery_core.errors import StoreReadError
from nixery_core.model.storepath import StorePath
from nixery_core.stores.nix_store import PIECE, DirectoryReader
from nixery_core.stores.reader import EntryType, StoreEntry
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink
from nixery_core.testing.trees import write_store

HELLO = StorePath("0" * 32, "hello-1.0")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one path in it."""
    tree = {
        "bin": {"hello": Executable(b"#!/bin/sh\n"), "hi": SymbolicLink("hello")},
        "empty": {},
        "share": {"large": b"x" * (2 * PIECE + 5), "none": b""},
    }
    write_store(MemoryStore({HELLO: tree}), tmp_path)
    return tmp_path


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _no_file_is_left_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def entries(store: Path, path: StorePath = HELLO) -> list[tuple[bytes, EntryType, bool, int, bytes]]:
    found = DirectoryReader(str(store)).listing(path)
    return [(entry.name, entry.type, entry.executable, entry.size, entry.target) for entry in found]


def is_file(entry: StoreEntry) -> bool:
    return entry.type is EntryType.REGULAR


def content(entry: StoreEntry) -> bytes:
    assert entry.data is not None or entry.contents is not None
    return entry.read()


class TestEntries:
    def test_everything_is_there_in_order(self, store: Path) -> None:
        """Directories before what they hold, empty ones too, with types, bits, sizes and targets."""
        assert entries(store) == [
            (b"", EntryType.DIRECTORY, False, 0, b""),
            (b"bin", EntryType.DIRECTORY, False, 0, b""),
            (b"bin/hello", EntryType.REGULAR, True, 10, b""),
            (b"bin/hi", EntryType.SYMLINK, False, 0, b"hello"),
            (b"empty", EntryType.DIRECTORY, False, 0, b""),
            (b"share", EntryType.DIRECTORY, False, 0, b""),
            (b"share/large", EntryType.REGULAR, False, 2 * PIECE + 5, b""),
            (b"share/none", EntryType.REGULAR, False, 0, b""),
        ]

    def test_names_are_in_byte_order(self, store: Path) -> None:
        """The order is that of the bytes, not of letters: the order of a NAR."""
        names = [b"a", b"B", b"\xc3\xa9", b"\xff", b"a.b", b"a-b", "\U0001f600".encode()]
        for name in names:
            Path(os.fsdecode(os.fsencode(store / HELLO.base / "empty") + b"/" + name)).touch()
        listed = [name for name, *_ in entries(store) if name.startswith(b"empty/")]
        assert listed == [b"empty/" + name for name in sorted(names)]

    def test_contents_come_in_pieces(self, store: Path) -> None:
        """A large file is never in memory whole, a small one is at hand at once."""
        (store / HELLO.base / "share" / "limit").write_bytes(bytes(PIECE))
        found = 0
        for entry in filter(is_file, DirectoryReader(str(store)).entries(HELLO)):
            if entry.size < PIECE:
                assert (entry.data is not None, entry.contents) == (True, None)
                assert len(entry.read()) == entry.size
                continue
            found += 1
            assert entry.data is None
            assert entry.contents is not None
            pieces = list(entry.contents())
            assert sum(map(len, pieces)) == entry.size
            assert all(len(piece) <= PIECE for piece in pieces)
        assert found == 2

    def test_hard_links_are_files(self, store: Path) -> None:
        """A store that was optimised gives the same entries."""
        before = entries(store)
        directory = store / HELLO.base / "bin"
        os.link(directory / "hello", store / "other name of it")
        assert entries(store) == before

    def test_owner_decides_what_is_executable(self, store: Path) -> None:
        """The bit that counts is the owner's, as in Nix."""
        file = store / HELLO.base / "share" / "none"
        for mode, executable in [(0o644, False), (0o755, True), (0o700, True), (0o655, False)]:
            file.chmod(mode)
            assert (b"share/none", EntryType.REGULAR, executable, 0, b"") in entries(store)

    def test_store_path_may_be_a_file_or_a_link(self, tmp_path: Path) -> None:
        """A store path need not be a directory."""
        link = StorePath("1" * 32, "link")
        write_store(MemoryStore({HELLO: b"text", link: SymbolicLink("/nowhere")}), tmp_path)
        reader = DirectoryReader(str(tmp_path))
        assert [(entry.name, content(entry)) for entry in reader.entries(HELLO)] == [(b"", b"text")]
        assert [(entry.type, entry.target) for entry in reader.entries(link)] == [(EntryType.SYMLINK, b"/nowhere")]
        assert reader.read_head(HELLO, b"", 2) == b"te"

    def test_deep_directories(self, tmp_path: Path) -> None:
        """Depth costs no recursion."""
        depth = 300
        path = tmp_path / HELLO.base
        path.joinpath(*["d"] * depth).mkdir(parents=True)
        assert len(entries(tmp_path)) == depth + 1

    def test_reader_pickles(self, store: Path) -> None:
        """A reader travels to other processes."""
        reader = pickle.loads(pickle.dumps(DirectoryReader(str(store))))
        assert len(list(reader.listing(HELLO))) == 8


class TestClosing:
    def test_consumer_that_stops_early(self, store: Path) -> None:
        """Nothing stays open when a consumer stops within a file or between two."""
        for entry in (walk := DirectoryReader(str(store)).entries(HELLO)):
            if entry.name == b"share/large" and entry.contents is not None:
                pieces = entry.contents()
                next(pieces)
                break
        pieces.close()  # type: ignore[attr-defined]
        walk.close()  # type: ignore[attr-defined]

    def test_contents_that_are_asked_for_too_late(self, store: Path) -> None:
        """After the walk an entry has no content: an error, not another file."""
        late = [entry for entry in DirectoryReader(str(store)).entries(HELLO) if entry.contents is not None]
        for entry in late:
            with pytest.raises(StoreReadError) as raised:
                content(entry)
            assert "before the next entry" in raised.value.hint

    def test_archive_that_fails(self, store: Path) -> None:
        """Nothing stays open when the archive cannot be written."""

        def fail(piece: bytes) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_archive(store_entries([HELLO], DirectoryReader(str(store))), fail)


class TestRefusals:
    @pytest.mark.parametrize("kind", ["named pipe", "socket", "character device"])
    def test_special_files(self, store: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What no store can hold is an error with its path, and reading does not hang."""
        where = store / HELLO.base / "bin" / "special"
        if kind == "named pipe":
            os.mkfifo(where)
        elif kind == "socket":
            monkeypatch.chdir(where.parent)
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(where.name)
        else:
            if os.geteuid() != 0:
                pytest.skip("only root makes devices")
            os.mknod(where, 0o600 | 0o020000, os.makedev(1, 3))
        with pytest.raises(StoreReadError, match=f"{where} is a {kind}"):
            entries(store)
        with pytest.raises(StoreReadError, match=r"special"):
            DirectoryReader(str(store)).read_head(HELLO, b"bin/special", 10)

    def test_missing_path(self, store: Path) -> None:
        """A path that is not in the store is named, with what to do."""
        missing = StorePath("2" * 32, "missing")
        with pytest.raises(StoreReadError, match=missing.base) as raised:
            entries(store, missing)
        assert "build or fetch" in raised.value.hint

    def test_missing_store(self, tmp_path: Path) -> None:
        """A machine without a store says so."""
        with pytest.raises(StoreReadError, match="nowhere") as raised:
            entries(tmp_path / "nowhere")
        assert "Nix installed" in raised.value.hint

    @pytest.mark.parametrize("size", [0, PIECE, 4 * PIECE])
    def test_file_that_changes_while_it_is_archived(self, store: Path, size: int) -> None:
        """A large file that shrinks or grows between the look and the read is an error that names it."""
        file = store / HELLO.base / "share" / "large"
        file.chmod(0o644)
        before = file.stat().st_size

        def entries() -> Iterator[ArchiveEntry]:
            for entry in store_entries([HELLO], DirectoryReader(str(store))):
                if entry.name.endswith(b"share/large"):
                    file.write_bytes(bytes(size))
                yield entry

        with pytest.raises(StoreReadError, match=rf"share/large is .*er than the {before} bytes"):
            write_archive(entries(), lambda _: None)

    @pytest.mark.parametrize("size", [0, 9, 11, 100])
    def test_small_file_that_changes_while_it_is_read(
        self, store: Path, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same holds in the moment between two calls of the system."""
        file = store / HELLO.base / "bin" / "hello"
        file.chmod(0o644)
        fstat = os.fstat

        def change(fd: int) -> os.stat_result:
            status = fstat(fd)
            if status.st_ino == file.stat().st_ino:
                file.write_bytes(bytes(size))
            return status

        monkeypatch.setattr(os, "fstat", change)
        with pytest.raises(StoreReadError, match=r"bin/hello is .*er than the 10 bytes"):
            write_archive(store_entries([HELLO], DirectoryReader(str(store))), lambda _: None)

    def test_file_that_becomes_a_link(self, store: Path) -> None:
        """A link in the place of a file is not followed out of the store."""
        (store / "secret").write_bytes(b"0123456789")
        for name, before in ((b"bin/hello", b"bin/a"), (b"share/large", b"share/large")):
            file = store / HELLO.base / os.fsdecode(name)
            (file.parent / "a").touch()
            walk = DirectoryReader(str(store)).entries(HELLO)
            last = next(entry for entry in walk if entry.name == before)
            file.unlink()
            file.symlink_to(store / "secret")
            with pytest.raises(StoreReadError, match=os.fsdecode(name)):
                [entry.read() for entry in (last, *walk)]

    def test_file_that_goes_away(self, store: Path) -> None:
        """A path that is collected while it is read is an error."""
        walk = DirectoryReader(str(store)).entries(HELLO)
        for entry in walk:
            if entry.name == b"bin":
                (store / HELLO.base / "bin" / "hello").unlink()
                (store / HELLO.base / "bin" / "hi").unlink()
                (store / HELLO.base / "bin").rmdir()
                break
        with pytest.raises(StoreReadError, match=r"bin.*No such file"):
            next(walk)

    def test_too_many_open_files(self, store: Path) -> None:
        """The limit of open files is an error that names it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        (store / HELLO.base).joinpath(*["d"] * 80).mkdir(parents=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
        try:
            with pytest.raises(StoreReadError) as raised:
                for _ in DirectoryReader(str(store)).listing(HELLO):
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "ulimit" in raised.value.hint


class TestReadHead:
    def test_first_bytes(self, store: Path) -> None:
        """As many bytes as asked for, or as there are."""
        reader = DirectoryReader(str(store))
        assert reader.read_head(HELLO, b"bin/hello", 2) == b"#!"
        assert reader.read_head(HELLO, b"bin/hello", 100) == b"#!/bin/sh\n"
        assert reader.read_head(HELLO, b"share/none", 100) == b""

    @pytest.mark.parametrize("name", [b"bin/hi", b"bin", b"nothing", b"bin/hello/x", b""])
    def test_what_is_no_file(self, store: Path, name: bytes) -> None:
        """Links, directories and what is not there are errors that name it."""
        with pytest.raises(StoreReadError) as raised:
            DirectoryReader(str(store)).read_head(HELLO, name, 10)
        assert (HELLO.base + "/" * bool(name) + name.decode()) in str(raised.value)

    def test_links_are_not_followed_on_the_way(self, store: Path) -> None:
        """A name that leads through a link is no name of an entry."""
        (store / HELLO.base / "sbin").symlink_to("bin")
        with pytest.raises(StoreReadError, match="sbin/hello"):
            DirectoryReader(str(store)).read_head(HELLO, b"sbin/hello", 10)


class TestCaseHack:
    def write(self, store: Path) -> MemoryStore:
        tree = {"Makefile": b"upper", "makefile": b"lower", "MAKEFILE": {"x": b"third"}}
        on_disk = {
            "Makefile": b"upper",
            "makefile~nix~case~hack~1": b"lower",
            "MAKEFILE~nix~case~hack~2": {"x": b"third"},
        }
        write_store(MemoryStore({HELLO: on_disk}), store)
        return MemoryStore({HELLO: tree})

    def test_suffixes_are_taken_off(self, tmp_path: Path) -> None:
        """A store of macOS gives the entries that every other machine gives, in the same order."""
        expected = self.write(tmp_path)
        reader = DirectoryReader(str(tmp_path), case_hack=True)
        found = [(entry, content(entry)) for entry in reader.entries(HELLO) if is_file(entry)]
        assert found == [(entry, content(entry)) for entry in expected.entries(HELLO) if is_file(entry)]
        assert list(reader.listing(HELLO)) == list(expected.listing(HELLO))
        assert reader.read_head(HELLO, b"MAKEFILE/x", 9) == b"third"
        assert reader.read_head(HELLO, b"makefile", 9) == b"lower"

    def test_elsewhere_names_are_names(self, tmp_path: Path) -> None:
        """Where Nix adds no suffixes, a name that looks like one stays."""
        self.write(tmp_path)
        names = [entry.name for entry in DirectoryReader(str(tmp_path), case_hack=False).listing(HELLO)]
        assert b"makefile~nix~case~hack~1" in names

    def test_two_files_of_one_name(self, tmp_path: Path) -> None:
        """A store in which two names become one is damaged."""
        write_store(MemoryStore({HELLO: {"a": b"", "a~nix~case~hack~1": b""}}), tmp_path)
        with pytest.raises(StoreReadError, match="two files of one name"):
            list(DirectoryReader(str(tmp_path), case_hack=True).listing(HELLO))

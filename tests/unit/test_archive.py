"""The tar writer: what it writes, and what it refuses."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator

import pytest

from nixery_core.archive import ARCHIVE_VERSION, PIECE, ArchiveEntry, store_entries, write_archive
from nixery_core.errors import StoreReadError
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink

HELLO = StorePath("0" * 32, "hello-1.0")


def directory(name: bytes, mode: int = 0o755) -> ArchiveEntry:
    return ArchiveEntry(name=name, type=EntryType.DIRECTORY, mode=mode)


def file(name: bytes, content: bytes = b"", size: int | None = None) -> ArchiveEntry:
    return ArchiveEntry(
        name=name,
        type=EntryType.REGULAR,
        mode=0o444,
        size=len(content) if size is None else size,
        contents=lambda: iter([content]),
    )


def link(name: bytes, target: bytes) -> ArchiveEntry:
    return ArchiveEntry(name=name, type=EntryType.SYMLINK, mode=0o777, target=target)


def archive(*entries: ArchiveEntry) -> bytes:
    pieces: list[bytes] = []
    write_archive(entries, pieces.append)
    return b"".join(pieces)


def read(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


class TestBytes:
    def test_format_is_fixed(self) -> None:
        """The bytes of an archive never change without a new ARCHIVE_VERSION."""
        store = MemoryStore(
            {
                HELLO: {
                    "bin": {"hello": Executable(b"#!/bin/sh\n" * 100)},
                    "empty": {},
                    "lib": SymbolicLink("t" * 101),
                    "n" * 150: b"long name",
                    b"not utf-8 \xff" * 15: b"",
                },
            }
        )
        data = archive(*store_entries([HELLO], store))
        expected = "de54f19d1ab7648b635cbcf6c0478ec03f4f34fec56b16869e82f8e0ace26399"
        assert (ARCHIVE_VERSION, hashlib.sha256(data).hexdigest()) == (1, expected)

    def test_plain_member_is_one_ustar_header(self) -> None:
        """Short names need no extension, so old readers manage."""
        data = archive(file(b"etc-passwd", b"x" * 513))
        assert len(data) == 512 + 1024 + 1024
        assert data[257:265] == b"ustar\x0000"
        assert data[:11] == b"etc-passwd\0"
        assert data[100:108] == b"0000444\0"
        assert data[136:148] == b"00000000001\0"
        assert int(data[148:154], 8) == sum(data[:148]) + 8 * 32 + sum(data[156:512])

    @pytest.mark.parametrize("byte", [0x01, 0x7F, 0xFF])
    def test_checksum_of_any_bytes(self, byte: int) -> None:
        """The checksum is the plain sum of the header, whatever its bytes."""
        name = b"/".join([bytes([byte]) * 150, bytes([byte]) * 99])
        data = archive(link(name, bytes([byte]) * 100))
        assert int(data[148:154], 8) == sum(data[:148]) + 8 * 32 + sum(data[156:512])

    @pytest.mark.parametrize(("head", "tail"), [(155, 100), (154, 1), (1, 100), (50, 49)])
    def test_name_that_splits_needs_no_extension(self, head: int, tail: int) -> None:
        """A name with a slash at the right place goes into prefix and name."""
        name = b"h" * head + b"/" + b"t" * tail
        data = archive(file(name))
        assert len(data) == 512 + 1024
        assert read(data)[0].name == name.decode()

    @pytest.mark.parametrize(("head", "tail"), [(156, 10), (10, 101), (0, 101), (155, 101)])
    def test_name_that_does_not_split_is_extended(self, head: int, tail: int) -> None:
        """A name without such a slash goes into a PAX record, whole."""
        name = (b"h" * head + b"/" if head else b"") + b"t" * tail
        data = archive(file(name))
        assert len(data) == 3 * 512 + 1024
        assert read(data)[0].name == name.decode()

    @pytest.mark.parametrize("size", [99, 100, 101, 254, 255, 256, 300])
    def test_directories_of_every_length(self, size: int) -> None:
        """The slash behind the name of a directory finds its place too."""
        for name in (b"d" * size, b"d" * (size // 2) + b"/" + b"d" * (size - size // 2 - 1)):
            (member,) = read(archive(directory(name)))
            assert (member.name, member.isdir(), member.mode) == (name.decode(), True, 0o755)

    def test_name_that_is_not_utf8_says_so(self) -> None:
        """A PAX record with raw bytes comes with the character set BINARY."""
        data = archive(file(b"\xff" * 101))
        assert b"21 hdrcharset=BINARY\n" in data
        assert read(data)[0].name == "\udcff" * 101
        assert b"hdrcharset" not in archive(file("ü".encode() * 101))

    def test_file_of_eight_gib_has_its_size_in_a_record(self) -> None:
        """A size without room in the header goes into a PAX record, and the padding fits."""
        size, zeros = 8 << 30, bytes(64 << 20)
        contents: Callable[[], Iterator[bytes]] = lambda: (zeros for _ in range(128))  # noqa: E731
        headers: list[bytes] = []
        total = write_archive(
            [ArchiveEntry(name=b"big", type=EntryType.REGULAR, mode=0o444, size=size, contents=contents)],
            lambda piece: headers.append(bytes(piece[:2048])) if not headers else None,
        )
        assert total == 3 * 512 + size + 1024
        assert b"19 size=8589934592\n" in headers[0]

    def test_special_bits_survive(self) -> None:
        """Sticky and setuid bits are kept: /tmp needs one."""
        assert read(archive(directory(b"tmp", 0o1777)))[0].mode == 0o1777


class TestPieces:
    def test_small_files_are_handed_on_together(self) -> None:
        """Thousands of small members make a few large writes."""
        pieces: list[bytes] = []
        write_archive([file(b"f%05d" % number, b"x" * 600) for number in range(3000)], pieces.append)
        assert len(pieces) == -(-3000 * (512 + 1024) // PIECE)
        assert all(PIECE <= len(piece) < 2 * PIECE for piece in pieces[:-1])

    def test_progress_counts_content(self) -> None:
        """Progress ends at the bytes of content, headers not counted."""
        told: list[int] = []
        entries = [file(b"f%d" % number, bytes(1 << 20)) for number in range(5)]
        write_archive(entries, lambda _: None, on_progress=told.append)
        assert told == sorted(told)
        assert told[-1] == 5 << 20

    def test_contents_and_entries_are_closed(self) -> None:
        """Whatever happens, what the reader holds open is closed before the error is seen."""
        closed = []

        def contents() -> Iterator[bytes]:
            try:
                yield b"too long"
            finally:
                closed.append("contents")

        def entries() -> Iterator[ArchiveEntry]:
            try:
                yield ArchiveEntry(name=b"f", type=EntryType.REGULAR, mode=0o444, size=1, contents=contents)
            finally:
                closed.append("entries")

        iterator = entries()
        with pytest.raises(StoreReadError):
            write_archive(iterator, lambda _: None)
        assert closed == ["contents", "entries"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("announced", "text"), [(4, "longer"), (6, "1 bytes shorter"), (1000, "995 bytes shorter")]
    )
    def test_file_that_changes_is_refused(self, announced: int, text: str) -> None:
        """A file that shrinks or grows while it is read is an error that names it, not a broken archive."""
        with pytest.raises(StoreReadError, match=f"/nix/f is {text} than the {announced} bytes"):
            archive(directory(b"nix"), file(b"nix/f", b"12345", size=announced))

    def test_file_without_content_is_refused(self) -> None:
        """A listing is not an archive."""
        with pytest.raises(StoreReadError, match="no content"):
            archive(ArchiveEntry(name=b"f", type=EntryType.REGULAR, mode=0o444, size=1))

    @pytest.mark.parametrize(
        "name", [b"", b"/", b"/etc", b"etc/", b"a//b", b".", b"..", b"a/../b", b"a/.", b"./a", b"a\0b"]
    )
    def test_bad_names_are_refused(self, name: bytes) -> None:
        """No member can land outside the root of the image, or be read in two ways."""
        with pytest.raises(StoreReadError, match="cannot be the name"):
            archive(file(name))

    @pytest.mark.parametrize("name", [b".wh.passwd", b"etc/.wh.passwd", b"etc/.wh..wh..opq"])
    def test_whiteouts_are_refused(self, name: bytes) -> None:
        """A file that would remove others in the image is an error."""
        with pytest.raises(StoreReadError, match="removed files"):
            archive(file(name))

    def test_dots_within_names_are_fine(self) -> None:
        """Only whole components of dots are special."""
        names = [b"...", b"..a", b".wh", b"a..", b"x.wh.y"]
        assert [member.name.encode() for member in read(archive(*map(file, names)))] == names

    def test_duplicates_are_refused(self) -> None:
        """A layer must not hold a name twice (image-spec, layer.md)."""
        with pytest.raises(StoreReadError, match="/a/b is twice"):
            archive(directory(b"a"), file(b"a/b"), file(b"a/b"))

    @pytest.mark.parametrize("names", [(b"b", b"a"), (b"a/b", b"a"), (b"a-b", b"a/b"), (b"a/b", b"b", b"a/b")])
    def test_wrong_order_is_refused(self, names: tuple[bytes, ...]) -> None:
        """Entries come as in a walk, so equal images have equal layers."""
        with pytest.raises(StoreReadError, match="out of order"):
            archive(*map(file, names))

    @pytest.mark.parametrize("target", [b"", b"a\0b"])
    def test_link_to_nowhere_is_refused(self, target: bytes) -> None:
        """A symbolic link has a target."""
        with pytest.raises(StoreReadError, match="link"):
            archive(link(b"l", target))


class TestStoreEntries:
    def test_parents_first_with_fixed_modes(self) -> None:
        """/nix and /nix/store come first and may be written by their owner; store paths may not."""
        names = [(entry.name, entry.mode) for entry in store_entries([HELLO], MemoryStore({HELLO: {}}))]
        assert names == [
            (b"nix", 0o755),
            (b"nix/store", 0o755),
            (b"nix/store/" + HELLO.base.encode(), 0o555),
        ]

    def test_store_path_may_be_a_file_or_a_link(self) -> None:
        """Not every store path is a directory."""
        other = StorePath("1" * 32, "link")
        store = MemoryStore({HELLO: b"text", other: SymbolicLink("/nix/store")})
        members = read(archive(*store_entries(store.trees, store)))
        assert [member.type for member in members[2:]] == [tarfile.REGTYPE, tarfile.SYMTYPE]

    def test_reader_is_closed_when_the_archive_fails(self) -> None:
        """A consumer that stops early closes the reader."""
        entries = store_entries([HELLO], MemoryStore({HELLO: {"a": b"x"}}))
        with pytest.raises(ZeroDivisionError):
            write_archive(entries, lambda _: 1 // 0)
        assert next(entries, None) is None

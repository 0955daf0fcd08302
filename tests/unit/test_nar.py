"""NARs as streams: what Nix writes is read, whatever the pieces; all else is refused with its place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from nixery_core.errors import StoreReadError
from nixery_core.model.digest import Digest
from nixery_core.stores.nar import MAX_DEPTH, nar_entries
from nixery_core.stores.reader import EntryType, StoreEntry
from nixery_core.testing.binary_cache import nar_bytes
from nixery_core.testing.memory_store import Executable, SymbolicLink, Tree

TREE: Tree = {
    b"a dir": {b"empty dir": {}, b"empty file": b"", b"\xff not utf-8\n": b"1234567"},
    b"bin": {b"hello": Executable(b"#!/bin/sh\n"), b"hi": SymbolicLink("hello")},
    b"large": bytes(range(256)) * 100,
    b"n" * 255: b"12345678",
}


def texts(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part + bytes(-len(part) % 8) for part in parts)


def archive(*parts: bytes) -> bytes:
    """A NAR of these texts behind its magic."""
    return texts(b"nix-archive-1", *parts)


def directory(*entries: bytes) -> bytes:
    return archive(b"(", b"type", b"directory") + b"".join(entries) + texts(b")")


def entry(name: bytes, *node: bytes) -> bytes:
    return texts(
        b"entry", b"(", b"name", name, b"node", *(node or (b"(", b"type", b"regular", b"contents", b"x", b")")), b")"
    )


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(data: bytes, size: int = 1 << 20, *, nar_size: int | None = None) -> list[tuple[StoreEntry, bytes]]:
    """Everything in *data*, taken to be what was promised unless *nar_size* says otherwise."""
    entries = nar_entries(
        pieces(data, size), nar_hash=Digest.of(data), nar_size=len(data) if nar_size is None else nar_size, where="it"
    )
    return [(found, found.read()) for found in entries]


def take_all(entries: Iterator[StoreEntry]) -> None:
    for found in entries:
        for _ in found.contents() if found.contents else ():
            pass


class TestReading:
    @pytest.mark.parametrize("size", [1, 7, 8, 4096, 1 << 20])
    def test_whatever_the_pieces(self, size: int) -> None:
        """Names, kinds, sizes, targets and contents come out, in order, wherever the pieces begin and end."""
        found = read(nar_bytes(TREE), size)
        assert [entry.name for entry, _ in found] == [
            b"",
            b"a dir",
            b"a dir/empty dir",
            b"a dir/empty file",
            b"a dir/\xff not utf-8\n",
            b"bin",
            b"bin/hello",
            b"bin/hi",
            b"large",
            b"n" * 255,
        ]
        by_name = {entry.name: (entry, content) for entry, content in found}
        assert by_name[b"bin/hello"][0].executable
        assert not by_name[b"large"][0].executable
        assert by_name[b"bin/hi"][0].target == b"hello"
        assert by_name[b"a dir/empty dir"][0].type is EntryType.DIRECTORY
        assert by_name[b"large"][1] == bytes(range(256)) * 100
        assert all(entry.size == len(content) for entry, content in found)

    @pytest.mark.parametrize("tree", [b"", b"content", Executable(b"x" * 9), SymbolicLink("/nix"), {}], ids=repr)
    def test_every_kind_of_root(self, tree: Tree) -> None:
        """A store path may be a file, a program, a link or an empty directory."""
        for size in (1, 1 << 20):
            ((found, content),) = read(nar_bytes(tree), size)
            assert found.name == b""
            assert content == (
                tree.content if isinstance(tree, Executable) else tree if isinstance(tree, bytes) else b""
            )

    def test_content_may_be_passed_over(self) -> None:
        """Whoever wants names alone takes no content, and everything is verified all the same."""
        data = nar_bytes(TREE)
        for size in (1, 100, 1 << 20):
            entries = list(nar_entries(pieces(data, size), nar_hash=Digest.of(data), nar_size=len(data)))
            assert len(entries) == 10
            with pytest.raises(StoreReadError, match="has the hash"):
                list(nar_entries(pieces(data, size), nar_hash=Digest.of(b""), nar_size=len(data)))

    def test_content_of_a_large_file_is_there_until_the_next_entry(self) -> None:
        """Content that is asked for too late is an error, never that of another file."""
        data = nar_bytes({"a": b"x" * 100_000, "b": b"y" * 100_000})
        entries = nar_entries(pieces(data, 1000), nar_hash=Digest.of(data), nar_size=len(data))
        next(entries)
        first = next(entries)
        assert first.contents is not None
        begun = first.contents()
        assert next(begun)
        next(entries)
        for late in (begun, first.contents()):
            with pytest.raises(StoreReadError, match="too late"):
                next(late)

    def test_memory_does_not_grow_with_the_archive(self) -> None:
        """A file of 64 MiB is read within 4 MiB."""
        piece = bytes(1 << 20)
        large = directory(entry(b"f"))  # its form; the content is put in between
        head, tail = large[: large.index(texts(b"x"))], large[large.index(texts(b"x")) + 16 :]

        def stream() -> Iterator[bytes]:
            yield head + (64 << 20).to_bytes(8, "little")
            for _ in range(64):
                yield piece
            yield tail

        size = len(head) + 8 + (64 << 20) + len(tail)
        tracemalloc.start()
        try:
            with pytest.raises(StoreReadError, match="has the hash"):
                take_all(nar_entries(stream(), nar_hash=Digest.of(b""), nar_size=size))
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_the_source_is_closed(self) -> None:
        """Connections behind the pieces are let go: at the end, at an error, and when nobody wants more."""
        closed: list[str] = []

        def source(name: str, data: bytes) -> Iterator[bytes]:
            try:
                yield from pieces(data, 100)
            finally:
                closed.append(name)

        data = nar_bytes(TREE)
        list(nar_entries(source("whole", data), nar_hash=Digest.of(data), nar_size=len(data)))
        with pytest.raises(StoreReadError):
            list(nar_entries(source("error", data), nar_hash=Digest.of(data), nar_size=200))
        given_up = nar_entries(source("given up", data), nar_hash=Digest.of(data), nar_size=len(data))
        next(given_up)
        given_up.close()  # type: ignore[attr-defined]
        assert closed == ["whole", "error", "given up"]


class TestPromises:
    def test_an_archive_that_is_cut_short(self) -> None:
        """Every beginning of an archive is refused, and called what it is."""
        data = nar_bytes(TREE)
        small = data[:1500]
        for end in [*range(0, len(small), 7), len(data) - 16, len(data) - 1]:
            with pytest.raises(StoreReadError, match=r"^it is cut short"):
                read(data[:end], 64, nar_size=len(data))

    def test_no_bit_can_be_changed(self) -> None:
        """Whatever byte of an archive is another one, it is refused."""
        data = nar_bytes({"d": {"f": b"12345", "g": Executable(b"x")}, "l": SymbolicLink("d")})
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(StoreReadError):
                list(nar_entries([changed], nar_hash=Digest.of(data), nar_size=len(data)))

    def test_an_archive_that_goes_on(self) -> None:
        """Nothing may stand behind the end, and nothing beyond NarSize is even read."""
        data = nar_bytes(TREE)
        with pytest.raises(StoreReadError, match="goes on behind its end"):
            read(data + bytes(8))
        with pytest.raises(StoreReadError, match="more bytes than the"):
            read(data, 100, nar_size=len(data) - 1)

        def endless() -> Iterator[bytes]:
            yield data
            while True:
                yield bytes(1 << 20)

        with pytest.raises(StoreReadError, match="more bytes than the"):
            list(nar_entries(endless(), nar_hash=Digest.of(data), nar_size=len(data)))

    def test_a_smaller_archive_than_promised(self) -> None:
        """A size that is too large is as wrong as one that is too small."""
        data = nar_bytes(TREE)
        with pytest.raises(StoreReadError, match=f"cut short: it has {len(data)} bytes, not the {len(data) + 8}"):
            read(data, nar_size=len(data) + 8)

    def test_the_hash_of_a_content_addressed_file(self) -> None:
        """A path that follows from the hash of a file must be a plain file with that hash."""

        def check(tree: Tree, promised: bytes) -> list[StoreEntry]:
            data = nar_bytes(tree)
            return list(
                nar_entries(
                    pieces(data, 64), nar_hash=Digest.of(data), nar_size=len(data), file_hash=Digest.of(promised)
                )
            )

        assert len(check(b"hello" * 100, b"hello" * 100)) == 1
        assert len(check(b"", b"")) == 1
        with pytest.raises(StoreReadError, match="another hash than its content address"):
            check(b"hallo", b"hello")
        for other in (Executable(b"hello"), {"hello": b"hello"}, SymbolicLink("hello")):
            with pytest.raises(StoreReadError, match="is no plain file"):
                check(other, b"hello")


DEEP = (b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node")


class TestHostileArchives:
    @pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../../etc/passwd", b"a\0b", b"n" * 256])
    def test_names(self, name: bytes) -> None:
        """Nothing gets out of the store path, or under a name that no file can have."""
        with pytest.raises(StoreReadError, match=r"no name of a file|bytes in /; 255 is the most"):
            read(directory(entry(name)))

    @pytest.mark.parametrize(("first", "second", "message"), [(b"a", b"a", "twice"), (b"b", b"a", "out of order")])
    def test_order(self, first: bytes, second: bytes, message: str) -> None:
        """No name is there twice, and none comes after a later one."""
        with pytest.raises(StoreReadError, match=message):
            read(directory(entry(first), entry(second)))

    def test_names_of_other_directories_do_not_count(self) -> None:
        """Order is within one directory."""
        inner = (b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b"node")
        file = (b"(", b"type", b"regular", b"contents", b"x", b")")
        assert len(read(directory(entry(b"b", *inner, *file, b")", b")"), entry(b"c")))) == 4

    @pytest.mark.parametrize("target", [b"", b"a\0b", b"t" * 4096])
    def test_targets(self, target: bytes) -> None:
        """A link leads somewhere that Linux can name."""
        with pytest.raises(StoreReadError, match="is a link whose target"):
            read(directory(entry(b"l", b"(", b"type", b"symlink", b"target", target, b")")))

    @pytest.mark.parametrize("length", [1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    @pytest.mark.parametrize("what", [b"name", b"contents", b"target"])
    def test_huge_lengths(self, what: bytes, length: int) -> None:
        """A length that the archive cannot hold is refused at once, not waited for."""
        head = {
            b"name": directory()[:-16] + texts(b"entry", b"(", b"name"),
            b"contents": archive(b"(", b"type", b"regular", b"contents"),
            b"target": archive(b"(", b"type", b"symlink", b"target"),
        }[what]
        asked: list[int] = []

        def stream() -> Iterator[bytes]:
            yield head + length.to_bytes(8, "little")
            while True:
                asked.append(1)
                yield bytes(4096)

        with pytest.raises(StoreReadError, match=r"bytes in /; 255|more than the whole archive|a link whose target"):
            list(nar_entries(stream(), nar_hash=Digest.of(b""), nar_size=1 << 30))
        # no more than the window that is read ahead
        assert len(asked) <= 2

    def test_padding(self) -> None:
        """Padding is of zeros: else two archives would be one tree."""
        data = nar_bytes({"abc": b"12345"})
        for text in (b"abc", b"12345", b"nix-archive-1", b"regular"):
            place = data.index(text) + len(text)
            with pytest.raises(StoreReadError):
                read(data[:place] + b"\1" + data[place + 1 :])

    def test_depth(self) -> None:
        """Directories within each other are read without recursion, up to a bound."""
        for depth, fits in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (5 * MAX_DEPTH, False)):
            data = archive(*DEEP * depth, b"(", b"type", b"directory", *(b")", b")") * depth, b")")
            if fits:
                assert len(read(data)) == depth + 1
                continue
            with pytest.raises(StoreReadError, match="directories within each other"):
                read(data)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"<html>" * 100,
            archive(b"(", b"type", b"socket", b")"),
            archive(b"(", b"kind", b"regular", b"contents", b"x", b")"),
            archive(b"(", b"type", b"regular", b"contents", b"x", b"(") + bytes(64),
            archive(b"(", b"type", b"regular", b")") + bytes(64),
            archive(b"(", b"type", b"regular", b"executable", b"x", b"contents", b"x", b")") + bytes(64),
            archive(b"(", b"type", b"regular", b"contents", b"x", b"executable", b"", b")") + bytes(64),
            directory(entry(b"a", b"(", b"type", b"socket", b")")),
            directory(texts(b"entry", b"(", b"node", b"(")) + bytes(64),
            directory(texts(b"entry", b"(", b"name", b"a", b")")) + bytes(64),
            directory(entry(b"a", b"(", b"type", b"regular", b"contents", b"x", b"x")),
            texts(b"nix-archive-2", b"(", b"type", b"regular", b"contents", b"x", b")"),
        ],
        ids=repr,
    )
    def test_what_nix_does_not_write(self, data: bytes) -> None:
        """Other kinds, other words and another order of them are no NAR, for whatever pieces."""
        for size in (1, 1 << 20):
            with pytest.raises(StoreReadError, match=r"^it "):
                read(data, size)

"""The JSON index: written, read, looked up in."""

import json
import threading

import pytest

from nixery_core import Cancellation
from nixery_core._documents import PACKERS, pack_document
from nixery_core.errors import (
    Cancelled,
    InvalidConfig,
    InvalidDocument,
    InvalidTag,
    PackageError,
    ProblemKind,
    RevisionNotFound,
    SourceError,
)
from nixery_core.index.document import IndexDocument, index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.index.index_file import IndexFile
from nixery_core.index.selection import Asked, select_packages
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.model.storepath import StorePath


def path(name):
    return StorePath((name + "a" * 32)[:32].translate(str.maketrans("eotu-", "01234")), name)


CURL = IndexEntry(
    outputs={"bin": path("curl-bin"), "man": path("curl-man"), "dev": path("curl-dev")},
    install=("bin", "man"),
    version="8.1",
    priority=4,
)
GIT = IndexEntry(outputs={"out": path("git-2")}, install=("out",))
UNFREE = IndexEntry(problem=ProblemKind.UNFREE)
THROWS = IndexEntry(problem=ProblemKind.FAILED, reason="evaluation aborted")
PACKAGES = {
    "x86_64-linux": {"curl": CURL, "git": GIT, "steam": UNFREE, "throws": THROWS},
    "aarch64-linux": {"git": GIT},
}
DATA = index_bytes(PACKAGES, source={"kind": "git", "url": "https://example.org/set", "revision": "0" * 40})


def look_up(*names, platform=AMD64, data=DATA):
    return IndexDocument.parse(data).look_up(names, platform, cancellation=Cancellation())


class TestDocument:
    def test_what_is_written_is_read(self):
        """Every entry comes back as it was, for the system that it was written for."""
        document = IndexDocument.parse(DATA)
        assert {system: dict(document.entries(system)) for system in document.systems} == PACKAGES
        assert document.made_of["revision"] == "0" * 40
        assert len(document) == 4

    def test_equal_content_is_equal_bytes(self):
        """The order in which packages and systems come does not show, so equal indexes have one revision."""
        turned = {system: dict(reversed(packages.items())) for system, packages in reversed(PACKAGES.items())}
        source = {"url": "https://example.org/set", "revision": "0" * 40, "kind": "git"}
        assert index_bytes(turned, source=source) == DATA
        assert all(line.count(b'"outputs"') <= 2 for line in DATA.splitlines())

    def test_packages_come_with_what_images_need(self):
        """Outputs to install in their order, and the priority."""
        (curl,) = look_up("curl")
        assert [(output.name, output.path) for output in curl.outputs] == [
            ("bin", CURL.outputs["bin"]),
            ("man", CURL.outputs["man"]),
        ]
        assert (curl.priority, curl.derivation, curl.attribute) == (4, None, "curl")

    def test_one_output_is_named_behind_the_package(self):
        """`curl.dev` is that output alone, also one that is not installed."""
        (dev,) = look_up("curl.dev")
        assert [output.name for output in dev.outputs] == ["dev"]
        assert dev.attribute == "curl.dev"
        (wrong,) = look_up("curl.deb")
        assert wrong.describe() == "curl.deb: not found: curl has no deb; did you mean curl.dev?"

    def test_problems_are_those_of_the_package_set(self):
        """What the set refused is refused with its kind, and the reason where it was told."""
        unfree, throws = look_up("steam", "throws")
        assert (unfree.kind, unfree.reason) == (ProblemKind.UNFREE, "")
        assert (throws.kind, throws.reason) == (ProblemKind.FAILED, "evaluation aborted")

    def test_platforms_are_told_apart(self):
        """A package that the index has for another platform only says so."""
        (curl,) = look_up("curl", platform=ARM64)
        assert curl.describe() == "curl: unsupported platform: the index has curl for x86_64-linux"
        (git,) = look_up("git", data=index_bytes({"x86_64-linux": {"git": GIT}}), platform=ARM64)
        assert git.describe() == "git: unsupported platform: the index has packages for x86_64-linux"

    def test_store_paths_need_no_entry(self):
        """The base name of a store path is found in every index."""
        (found,) = look_up(GIT.outputs["out"].base)
        assert found.outputs[0].path == GIT.outputs["out"]

    def test_cancelled_before_it_begins(self):
        """A cancelled build looks nothing up."""
        token = Cancellation()
        token.cancel()
        with pytest.raises(Cancelled):
            IndexDocument.parse(DATA).look_up(["git"], AMD64, cancellation=token)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"[]",
            b"{}",
            b'{"format_version": 2, "packages": {}, "systems": []}',
            b'{"format_version": true, "packages": {}, "systems": []}',
            b'{"format_version": 1, "packages": [], "systems": []}',
            b'{"format_version": 1, "packages": {}, "systems": [1]}',
            b'{"format_version": 1, "packages": {}, "systems": [], "source": {"url": 1}}',
            b'{"format_version": 1, "packages": {}, "systems": [], "store_dir": "/gnu/store"}',
            b"[" * 100_000,
        ],
    )
    def test_other_documents_are_refused(self, data):
        """What is no index says so."""
        with pytest.raises(InvalidDocument, match="the index"):
            IndexDocument.parse(data)

    @pytest.mark.parametrize(
        "entry",
        [
            1,
            {},
            {"outputs": 1},
            {"outputs": {"out": 1}},
            {"outputs": {"out": "../../etc"}},
            {"outputs": {"out": "/gnu/store/" + "a" * 32 + "-x"}},
            {"outputs": {"bin": "a" * 32 + "-x"}},
            {"outputs": {"out": "a" * 32 + "-x"}, "install": "out"},
            {"outputs": {"out": "a" * 32 + "-x"}, "install": []},
            {"outputs": {"out": "a" * 32 + "-x"}, "priority": "5"},
            {"outputs": {"out": "a" * 32 + "-x"}, "version": 1},
            {"problem": "tired"},
        ],
    )
    def test_damaged_entries_are_named(self, entry):
        """An entry that cannot be read is told with its attribute when it is asked for, and harms no other."""
        document = {"format_version": 1, "packages": {"bad": {"x86_64-linux": entry}}, "systems": ["x86_64-linux"]}
        data = json.dumps(document).encode()
        with pytest.raises(InvalidDocument, match="bad on x86_64-linux"):
            look_up("bad", data=data)
        assert look_up("good", data=data)[0].kind is ProblemKind.NOT_FOUND


class TestSelection:
    def test_all_problems_at_once(self):
        """Every name that cannot be used is in the one error, in the order asked."""
        asked = Asked.of(["curll", "git", "steam"], ["nano"])
        looked = dict(zip(asked.names, look_up(*asked.names), strict=True))
        with pytest.raises(PackageError) as caught:
            select_packages(asked, looked, on_event=lambda event: None, unfree_hint="allow it")
        assert [problem.name for problem in caught.value.problems] == ["curll", "steam"]

    def test_optional_names_are_left_out(self):
        """An optional package that is not there is told and left out; each attribute comes once."""
        asked = Asked.of(["git", "Git"], ["nano", "git"])
        looked = dict(zip(asked.names, look_up(*asked.names), strict=True))
        events = []
        packages = select_packages(asked, looked, on_event=events.append, unfree_hint="")
        assert [(package.name, package.attribute) for package in packages] == [("Git", "git")]
        assert [(event.name, event.reason) for event in events] == [("nano", "not found")]


class TestIndexFile:
    @pytest.mark.parametrize("end", ["", *PACKERS])
    def test_packed_or_not_it_is_one_index(self, tmp_path, end):
        """However it is packed, the revision is that of the document."""
        file = tmp_path / f"index.json{end}"
        file.write_bytes(pack_document(DATA, file.name))
        assert IndexFile(str(file)).snapshot("latest").revision == IndexDocument.parse(DATA).revision

    def test_it_is_read_again_after_a_while(self, tmp_path):
        """Within the time to live one document is believed; afterwards the new one is seen."""
        file = tmp_path / "index.json"
        file.write_bytes(DATA)
        lasting, fleeting = IndexFile(str(file)), IndexFile(str(file), ttl=0)
        before = lasting.snapshot("latest").revision
        assert fleeting.snapshot("latest").revision == before
        file.write_bytes(index_bytes({"x86_64-linux": {"git": GIT}}))
        assert lasting.snapshot("latest").revision == before
        assert fleeting.snapshot("latest").revision != before

    def test_many_threads_read_it_once(self, tmp_path, monkeypatch):
        """Threads that need an index at the same time wait for one of them to read it."""
        file = tmp_path / "index.json"
        file.write_bytes(DATA)
        index, read = IndexFile(str(file)), []
        parse = IndexDocument.parse
        monkeypatch.setattr(IndexDocument, "parse", lambda data, where: read.append(1) or parse(data, where=where))
        threads = [threading.Thread(target=index.snapshot, args=("latest",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read) == 1

    def test_tags_name_files(self, tmp_path):
        """Where the URL has a place for it, the tag of the image chooses the document."""
        (tmp_path / "v1.json").write_bytes(DATA)
        index = IndexFile(str(tmp_path / "{tag}.json"))
        assert index.snapshot("v1").revision == IndexDocument.parse(DATA).revision
        with pytest.raises(RevisionNotFound, match=r"v2\.json"):
            index.snapshot("v2")
        with pytest.raises(InvalidTag, match="has no tag"):
            IndexFile(str(tmp_path / "v1.json")).snapshot("v1")

    def test_what_cannot_be_read_is_a_source_error(self, tmp_path):
        """A damaged document is told as what is wrong with the source."""
        (tmp_path / "index.json").write_bytes(b"{}")
        (tmp_path / "index.json.br").write_bytes(b"no brotli")
        (tmp_path / "cut.json.br").write_bytes(pack_document(DATA, ".br")[:-9])
        for name in ("index.json", "index.json.br", "cut.json.br"):
            with pytest.raises(SourceError, match=name):
                IndexFile(str(tmp_path / name)).snapshot("latest")
        with pytest.raises(InvalidConfig):
            IndexFile("")

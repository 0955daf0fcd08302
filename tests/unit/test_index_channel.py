"""What a channel publishes, as a package index."""

import json

import pytest

from nixery_core import Cancellation
from nixery_core._documents import pack_document
from nixery_core.errors import InvalidConfig, InvalidTag, ProblemKind, RevisionNotFound, SourceError
from nixery_core.index import channel
from nixery_core.index.channel import ChannelIndex
from nixery_core.index.package_index import choose_none
from nixery_core.model.platform import AMD64
from nixery_core.model.storepath import StorePath

COMMIT = "5f5210aa20e343b7e35f40c033000db0ef80d7b9"


def package(name, outputs=("out",), **meta):
    pname, _, version = name.rpartition("-")
    return {
        "name": name, "pname": pname, "version": version, "system": "x86_64-linux", "outputName": outputs[0],
        "outputs": dict.fromkeys(outputs),
        "meta": {"available": True, "broken": False, "insecure": False, "unfree": False, "unsupported": False,
                 "license": {"shortName": "mit"}, "maintainers": [{"name": "x"}],
                 "outputsToInstall": list(outputs[:1])} | meta,
    }  # fmt: skip


PACKAGES = {
    "git": package("git-2.45"),
    "curl": package("curl-8.1", ("bin", "dev", "out", "man"), outputsToInstall=["bin", "man"], priority=4),
    "python3Packages.six": package("python3.12-six-1.16"),
    "twice": package("twice-1"),
    "steam": package("steam-1", unfree=True),
    "old": package("old-1", insecure=True),
    "mac": package("mac-1", available=False),
    "unbuilt": package("unbuilt-1"),
    "listed": package("listed-1") | {"outputs": ["out", "man"], "meta": {}},
    "nameless": {"meta": {}},
}


def base(letter, name):
    return f"{letter * 32}-{name}"


PATHS = [
    base("1", "git-2.45"), base("2", "curl-8.1"), base("3", "curl-8.1-bin"), base("4", "curl-8.1-man"),
    base("5", "curl-8.1-dev"), base("6", "python3.12-six-1.16"), base("7", "twice-1"), base("8", "twice-1"),
    base("9", "listed-1"), base("a", "listed-1-man"),
]  # fmt: skip


def publish(folder, *, packages=PACKAGES, paths=PATHS, commit=COMMIT, version=2):
    folder = folder / "nixos-unstable"
    folder.mkdir(exist_ok=True)
    document = json.dumps({"version": version, "packages": packages}).encode()
    (folder / "packages.json.br").write_bytes(pack_document(document, ".br"))
    lines = "".join(f"/nix/store/{path}\n" for path in paths)
    (folder / "store-paths.xz").write_bytes(pack_document(lines.encode(), ".xz"))
    (folder / "git-revision").write_text(commit)


@pytest.fixture
def index(tmp_path):
    publish(tmp_path)
    return ChannelIndex("nixos-unstable", channels_url=str(tmp_path))


def look_up(index, *names, choose=choose_none):
    return index.snapshot("latest").look_up(names, AMD64, choose=choose, cancellation=Cancellation())


class TestChannelIndex:
    def test_names_are_matched(self, index):
        """An output `out` has the name of the derivation, any other its own name behind it."""
        git, curl, six, listed = look_up(index, "git", "curl", "python3packages.six", "listed")
        assert [output.path.base for output in git.outputs] == [base("1", "git-2.45")]
        assert [output.path.base for output in curl.outputs] == [base("3", "curl-8.1-bin"), base("4", "curl-8.1-man")]
        assert (curl.priority, git.priority) == (4, 5)
        assert six.attribute == "python3Packages.six"
        assert [output.name for output in listed.outputs] == ["out", "man"]

    def test_one_output_is_named(self, index):
        """An output that is not installed is found by its name."""
        dev, wrong = look_up(index, "curl.dev", "curl.lib")
        assert dev.outputs[0].path.base == base("5", "curl-8.1-dev")
        assert wrong.kind is ProblemKind.NOT_FOUND

    def test_several_paths_of_one_name_are_an_error_that_lists_them(self, index):
        """What cannot be told apart is not guessed, and each can be asked for by itself."""
        (twice,) = look_up(index, "twice")
        assert twice.kind is ProblemKind.AMBIGUOUS
        assert twice.candidates == (base("7", "twice-1"), base("8", "twice-1"))
        assert look_up(index, twice.candidates[1])[0].outputs[0].path.base == base("8", "twice-1")

    def test_whoever_can_tell_them_apart_is_asked(self, index):
        """The caller's choice is taken, for the platform of the image."""
        asked = []

        def choose(paths, platform):
            asked.append((tuple(path.hash[0] for path in paths), platform))
            return paths[1]

        (twice,) = look_up(index, "twice", choose=choose)
        assert twice.outputs[0].path == StorePath.parse(base("8", "twice-1"))
        assert asked == [(("7", "8"), AMD64)]

    def test_what_was_not_built_has_its_reason(self, index):
        """The mark of the package set, or that there is no store path."""
        steam, old, mac, unbuilt, nameless = look_up(index, "steam", "old", "mac", "unbuilt", "nameless")
        kinds = [steam.kind, old.kind, mac.kind, unbuilt.kind, nameless.kind]
        assert kinds == [
            ProblemKind.UNFREE, ProblemKind.INSECURE, ProblemKind.UNSUPPORTED_PLATFORM, ProblemKind.FAILED,
            ProblemKind.NOT_FOUND,
        ]  # fmt: skip
        assert "unbuilt-1" in unbuilt.reason

    def test_the_revision_is_the_commit(self, index):
        """The commit pins; the only tags are `latest` and the channel."""
        assert index.snapshot("latest").revision == index.snapshot("nixos-unstable").revision == COMMIT
        with pytest.raises(InvalidTag):
            index.snapshot("v1")

    def test_the_documents_are_read_once_a_commit(self, tmp_path, monkeypatch):
        """As long as the channel stays, its commit alone is read again."""
        publish(tmp_path)
        read, real = [], channel.read_document
        monkeypatch.setattr(channel, "read_document", lambda url: read.append(url.rpartition("/")[2]) or real(url))
        index = ChannelIndex("nixos-unstable", channels_url=str(tmp_path), ttl=0)
        first = index.snapshot("latest")
        assert index.snapshot("latest") is first
        assert read.count("packages.json.br") == 1
        publish(tmp_path, commit="1" * 40)
        assert index.snapshot("latest").revision == "1" * 40

    def test_a_channel_that_moves_is_read_again(self, tmp_path, monkeypatch):
        """The three documents belong to one commit, or nobody believes them."""
        publish(tmp_path)
        real = channel.read_document

        def moving(url):
            if url.endswith("store-paths.xz") and not moved:
                moved.append(url)
                publish(tmp_path, commit="1" * 40, paths=PATHS[:1])
            return real(url)

        moved = []
        monkeypatch.setattr(channel, "read_document", moving)
        snapshot = ChannelIndex("nixos-unstable", channels_url=str(tmp_path)).snapshot("latest")
        assert snapshot.revision == "1" * 40
        assert len(snapshot.store_paths) == 1

    def test_documents_of_another_form_are_errors_of_the_source(self, tmp_path):
        """A folder that is no channel says what is missing or wrong in it."""
        index = ChannelIndex("nixos-unstable", channels_url=str(tmp_path), ttl=0)
        with pytest.raises(RevisionNotFound, match="no channel nixos-unstable"):
            index.snapshot("latest")
        publish(tmp_path, version=1)
        with pytest.raises(SourceError, match="version 2"):
            index.snapshot("latest")
        publish(tmp_path, paths=["x"])
        with pytest.raises(SourceError, match="line 1"):
            index.snapshot("latest")
        publish(tmp_path, commit="main")
        with pytest.raises(SourceError, match="no commit"):
            index.snapshot("latest")
        with pytest.raises(InvalidConfig):
            ChannelIndex("../x")

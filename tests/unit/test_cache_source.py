"""Binary caches as a package source."""

import json
import pickle
import re
import subprocess
import sys

import attrs
import pytest

from nixery_core import Cancellation, ImageBuilder, ImageSpec, LocalPath, open_backend
from nixery_core._platform_choice import PlatformChoice
from nixery_core.cache_source import BinaryCacheSource
from nixery_core.demo import write_demo_cache
from nixery_core.errors import (
    InvalidTag,
    PackageError,
    PathsNotFound,
    ProblemKind,
    RevisionNotFound,
    SourceError,
    UntrustedPath,
)
from nixery_core.events import PackageSkipped
from nixery_core.index.document import index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.index.index_file import IndexFile
from nixery_core.model.digest import Digest
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.model.storepath import StorePath
from nixery_core.nix import Nix
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.binary_caches import BinaryCaches
from nixery_core.stores.realiser import Realiser, RealiserSource
from nixery_core.testing.binary_cache import write_cache
from nixery_core.testing.memory_store import Executable, MemoryStore


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo_cache(tmp_path_factory.mktemp("demo") / "cache")


@pytest.fixture
def source(demo):
    return BinaryCacheSource(BinaryCache(str(demo.folder), trusted_keys=()), IndexFile(str(demo.index)))


class TestSource:
    def test_builds_images_without_nix(self, source, tmp_path, monkeypatch):
        """A builder of the source needs no realiser and no Nix, and finds its image again."""
        monkeypatch.setenv("PATH", str(tmp_path))
        builder = ImageBuilder(source, open_backend(tmp_path / "images"))
        image = builder.build(ImageSpec.parse("hello/toolbox"))
        assert image.revision.startswith("sha256:")
        assert not image.cached
        again = builder.build(ImageSpec.parse("toolbox/hello"))
        assert again.cached
        assert again.descriptor == image.descriptor

    def test_a_source_says_how_its_names_become_store_paths(self, source):
        """The capability is looked for in the source; a realiser that is passed in wins."""
        assert isinstance(source, RealiserSource)
        assert not isinstance(LocalPath("/"), RealiserSource)
        backend = open_backend("memory://none")
        spec, pin = ImageSpec.parse("hello"), source.pin("latest")
        keys = {
            str(ImageBuilder(source, backend, realiser=realiser).cache_key(spec, pin))
            for realiser in (None, source.realiser(), Nix())
        }
        assert len(keys) == 2
        realiser: Realiser = source.realiser()
        assert realiser.id == "binary-cache 1"

    def test_the_pin_follows_the_index(self, source, demo, tmp_path):
        """Equal documents are one revision, wherever they are; another document is another."""
        copy = tmp_path / "index.json"
        copy.write_bytes(demo.index.read_bytes())
        other = attrs.evolve(source, index=IndexFile(str(copy), ttl=0))
        first = other.pin("latest")
        assert first.revision == source.pin("latest").revision
        copy.write_bytes(index_bytes({"x86_64-linux": {}}))
        assert other.pin("latest").revision != first.revision

    def test_names_are_looked_up_in_what_was_pinned(self, source, demo, tmp_path):
        """An index that changes between pin and look-up is not mixed with the old one."""
        copy = tmp_path / "index.json"
        copy.write_bytes(demo.index.read_bytes())
        moving = attrs.evolve(source, index=IndexFile(str(copy), ttl=0))
        pin = moving.pin("latest")
        copy.write_bytes(index_bytes({"x86_64-linux": {}}))
        moving.pin("latest")
        assert [package.attribute for package in moving.realiser().evaluate(pin, ["hello"], [], AMD64)] == ["hello"]
        # a copy in another process does not remember what was pinned
        elsewhere = pickle.loads(pickle.dumps(moving))
        with pytest.raises(RevisionNotFound, match="resolve the tag again"):
            elsewhere.realiser().evaluate(pin, ["hello"], [], AMD64)

    def test_problems_come_all_at_once(self, source):
        """Every name that cannot be used is told, with what is near; optional ones are left out."""
        events = []
        pin = source.pin("latest")
        with pytest.raises(PackageError) as caught:
            source.realiser().evaluate(pin, ["helo", "hello", "broken", "unfree"], [], AMD64)
        assert [(p.name, p.kind) for p in caught.value.problems] == [
            ("helo", ProblemKind.NOT_FOUND), ("broken", ProblemKind.BROKEN), ("unfree", ProblemKind.UNFREE),
        ]  # fmt: skip
        source.realiser().evaluate(pin, ["hello"], ["cacert"], AMD64, on_event=events.append)
        assert events == [PackageSkipped(name="cacert", reason="not found")]
        with pytest.raises(PackageError) as caught:
            source.realiser().evaluate(pin, ["unfree"], [], AMD64)
        assert "index --allow-unfree" in caught.value.hint

    def test_a_damaged_entry_is_an_error_of_the_source(self, source, tmp_path):
        """What is wrong in the index is told as such, not as an error of the caller."""
        document = {"format_version": 1, "systems": ["x86_64-linux"], "packages": {"x": {"x86_64-linux": 1}}}
        (tmp_path / "index.json").write_text(json.dumps(document))
        broken = attrs.evolve(source, index=IndexFile(str(tmp_path / "index.json")))
        with pytest.raises(SourceError, match="x on x86_64-linux"):
            broken.realiser().evaluate(broken.pin("latest"), ["x"], [], AMD64)

    def test_what_the_cache_does_not_have_is_listed(self, source, tmp_path):
        """An index may promise what the cache lacks: every path is named, and nothing is stored."""
        missing = {name: StorePath(letter * 32, name) for letter, name in (("1", "gone-1"), ("2", "away-1"))}
        entries = {name: IndexEntry(outputs={"out": path}, install=("out",)) for name, path in missing.items()}
        index = tmp_path / "index.json"
        index.write_bytes(index_bytes({"x86_64-linux": {"gone": entries["gone-1"], "away": entries["away-1"]}}))
        builder = ImageBuilder(attrs.evolve(source, index=IndexFile(str(index))), open_backend(tmp_path / "images"))
        with pytest.raises(PathsNotFound) as caught:
            builder.build(ImageSpec.parse("gone/away"))
        assert set(caught.value.missing) == {str(path) for path in missing.values()}
        assert not (tmp_path / "images" / "blobs").exists()

    def test_pins_of_other_sources_are_refused(self, source, tmp_path):
        """A pin that is none of this source says so."""
        (tmp_path / "default.nix").write_text("{ }")
        with pytest.raises(SourceError, match="no pin of this source"):
            source.snapshot(LocalPath(tmp_path).pin("latest"))


class TestStorePaths:
    def test_images_of_store_paths(self, source, demo, tmp_path):
        """A store path is a package, by its full name or its last component, with an index or without."""
        (hello,) = source.realiser().evaluate(source.pin("latest"), ["hello"], [], AMD64)
        path = hello.outputs[0].path
        alone = BinaryCacheSource(BinaryCache(str(demo.folder), trusted_keys=()))
        images = [
            ImageBuilder(where, open_backend(tmp_path / "images")).build(ImageSpec(packages=[name]))
            for where in (source, alone)
            for name in (str(path), path.base)
        ]
        assert len({image.config.rootfs for image in images}) == 1
        assert [image.cached for image in images] == [False, True, False, True]

    def test_without_an_index_there_are_no_names(self, demo):
        """A name says that it needs an index; no tag but `latest` has a meaning."""
        alone = BinaryCacheSource(BinaryCache(str(demo.folder), trusted_keys=()))
        with pytest.raises(PackageError, match="no index"):
            alone.realiser().evaluate(alone.pin("latest"), ["hello"], [], AMD64)
        with pytest.raises(InvalidTag):
            alone.pin("v1")


def elf(machine):
    return Executable(b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + machine.to_bytes(2, "little") + bytes(44))


def path(letter, name="tool-1"):
    return StorePath(letter * 32, name)


class TestPlatformChoice:
    @pytest.fixture
    def caches(self, tmp_path):
        store = MemoryStore(
            {
                path("1"): {"bin": {"tool": elf(62)}},
                path("2"): {"bin": {"tool": elf(183)}},
                path("3"): {"bin": {"tool": elf(62)}, "more": b"x"},
                path("c"): {"bin": {"tool": elf(183)}, "more": b"x"},
                path("4", "lib-1"): {"lib": {"libx.so.1": elf(62).content}},
                path("5", "lib-1"): {"lib": {"libx.so.1": elf(183).content}},
                path("6", "script-1"): {"bin": {"script": Executable(b"#!/bin/sh and more than twenty bytes")}},
                path("7", "script-1"): {"bin": {"script": Executable(b"#!/bin/sh and some other bytes")}},
                path("8", "data-1"): {"share": {"x": b"data"}},
                path("9", "data-1"): {"share": {"x": b"data"}},
                path("a", "data-1"): {"share": {"x": b"other"}},
            }
        )
        references = {path("6", "script-1"): [path("4", "lib-1")], path("7", "script-1"): [path("5", "lib-1")]}
        write_cache(tmp_path, store, references=references, compression="xz")
        return BinaryCaches(BinaryCache(str(tmp_path), allow_unsigned=True))

    @pytest.mark.parametrize(
        ("candidates", "platform", "chosen"),
        [
            ("12", AMD64, "1"),
            ("12", ARM64, "2"),
            ("45", ARM64, "5"),  # a library
            ("67", AMD64, "6"),  # by what the script refers to
            ("89", AMD64, "8"),  # the same content
        ],
    )
    def test_programs_tell(self, caches, candidates, platform, chosen):
        """The machine of the programs, or of what they refer to, tells store paths of one name apart."""
        names = {"4": "lib-1", "5": "lib-1", "6": "script-1", "7": "script-1", "8": "data-1", "9": "data-1"}
        paths = [path(letter, names.get(letter, "tool-1")) for letter in candidates]
        choice = PlatformChoice(caches, Cancellation())
        assert choice(paths, platform) == path(chosen, names.get(chosen, "tool-1"))

    @pytest.mark.parametrize("candidates", ["13", "8a", "bd", "1b", "2b", "2c"])
    def test_nothing_is_guessed(self, caches, candidates):
        """Two for the platform, two without programs, none for it, or one that is not there: no answer."""
        names = {"8": "data-1", "a": "data-1"}
        paths = [path(letter, names.get(letter, "tool-1")) for letter in candidates]
        assert PlatformChoice(caches, Cancellation())(paths, AMD64) is None


class TestDemoCache:
    def test_it_is_the_same_everywhere(self, demo, tmp_path):
        """The files have no time, no place and no chance in them, and writing them again changes nothing."""
        again = write_demo_cache(tmp_path / "cache")
        files = {file.relative_to(demo.folder): file.read_bytes() for file in demo.folder.rglob("*") if file.is_file()}
        assert {f.relative_to(again.folder): f.read_bytes() for f in again.folder.rglob("*") if f.is_file()} == files
        times = {file: file.stat().st_mtime_ns for file in again.folder.rglob("*") if file.is_file()}
        write_demo_cache(again.folder)
        assert {file: file.stat().st_mtime_ns for file in times} == times
        assert sum(map(len, files.values())) < 200_000

    def test_nobody_has_to_be_trusted(self, demo, tmp_path):
        """Every path follows from its content; changed content is refused though no key is asked for."""
        (tmp_path / "cache").mkdir()
        copy = write_demo_cache(tmp_path / "cache")
        source = BinaryCacheSource(BinaryCache(str(copy.folder), trusted_keys=()), IndexFile(str(copy.index)))
        (hello,) = source.realiser().evaluate(source.pin("latest"), ["hello"], [], AMD64)
        narinfo = copy.folder / f"{hello.outputs[0].path.hash}.narinfo"
        other = Digest.of(b"other content").to_nix()
        narinfo.write_text(re.sub("(?m)^NarHash: .*$", f"NarHash: {other}", narinfo.read_text()))
        with pytest.raises(UntrustedPath):
            ImageBuilder(source, open_backend(tmp_path / "images")).build(ImageSpec.parse("hello"))

    def test_every_package_is_an_image(self, source, tmp_path):
        """All that the demo offers can be built, for both platforms."""
        for platform in (AMD64, ARM64):
            snapshot = source.index.snapshot("latest")
            usable = [name for name, entry in snapshot.entries(platform.system) if entry.problem is None]
            spec = ImageSpec(packages=usable, platform=platform, name="all")
            image = ImageBuilder(source, open_backend(tmp_path / "images")).build(spec)
            assert len(image.layers) > len(usable)

    def test_the_index_finds_what_image_names_cannot_spell(self, source):
        """The demo has names for every rule."""
        names = ["upper", "1name", "demopackages.inner", "toolbox.dev"]
        found = source.realiser().evaluate(source.pin("latest"), names, [], AMD64)
        assert [package.attribute for package in found] == ["Upper", "_1name", "demoPackages.inner", "toolbox.dev"]


class TestCommand:
    def run(self, *words, cwd):
        command = [sys.executable, "-m", "nixery_core", *words, "--progress", "none"]
        return subprocess.run(command, cwd=cwd, env={"PATH": str(cwd)}, capture_output=True, text=True, check=False)

    def test_the_demo_needs_python_alone(self, tmp_path):
        """Without any program in PATH the demo makes an image, and the second time finds it."""
        done = self.run("demo", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "hello:latest is stored: 5 layers" in done.stdout
        assert "was stored already" in self.run("demo", cwd=tmp_path).stdout
        wrong = self.run("demo", "helo", cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (4, "")
        assert "did you mean hello?" in wrong.stderr

    def test_a_cache_as_source(self, demo, tmp_path):
        """`--source cache:URL#INDEX` builds without Nix, `plan` shows it, and trust is asked for."""
        source = ["--source", f"cache:{demo.folder}#{demo.index}", "--store", "images"]
        done = self.run("build", "hello", *source, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "stored" in self.run("plan", "hello", *source, cwd=tmp_path).stdout

    def test_unsigned_paths_need_a_word(self, tmp_path):
        """What nobody signed is refused, unless the caller allows it by name."""
        write_cache(tmp_path / "cache", MemoryStore({path("1"): {"bin": {"tool": elf(62)}}}))
        words = ["build", "-A", path("1").base, "--source", "cache:cache", "--store", "images"]
        refused = self.run(*words, cwd=tmp_path)
        assert refused.returncode != 0
        assert "is not signed" in refused.stderr
        assert self.run(*words, "--allow-unsigned", cwd=tmp_path).returncode == 0

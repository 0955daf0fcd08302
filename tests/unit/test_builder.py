"""ImageBuilder, on packages in memory and a storage on disk."""

import concurrent.futures
import io
import multiprocessing
import tarfile
import threading
import zlib

import attrs
import pytest

from nixery_core import events
from nixery_core.builder import ImageBuilder
from nixery_core.cancellation import Cancellation
from nixery_core.errors import (
    Cancelled,
    InvalidConfig,
    LayerBudgetError,
    LayerPlanError,
    PackageError,
    StorageError,
    StoreReadError,
)
from nixery_core.layering.layerer import LayerPlan
from nixery_core.layering.popularity import Popularity
from nixery_core.model.image import CustomFile, ImageSpec
from nixery_core.model.oci import ContainerConfig, ImageConfig, ImageIndex, Manifest
from nixery_core.model.platform import ARM64
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.keys import INDEX_KEY, blob_key, layer_cache_key, manifest_cache_key
from nixery_core.storage.layout import list_refs, read_ref
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser
from nixery_core.testing.memory_store import Executable, MemoryStore


def path(letter, name):
    return StorePath(letter * 32, name)


LIBC, BASH, GIT = path("a", "glibc-2.36"), path("b", "bash-5.2"), path("c", "git-2.39")
# an ELF header of x86-64, so that the shell counts as one for the platform
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(44)

PACKAGES = {
    "glibc": MemoryPackage(path=LIBC, tree={"lib": {"libc.so.6": b"library" * 1000}}),
    "bash": MemoryPackage(
        path=BASH, tree={"bin": {"bash": Executable(ELF), "sh": Executable(ELF)}}, references=(LIBC,)
    ),
    "git": MemoryPackage(path=GIT, tree={"bin": {"git": Executable(b"git")}}, references=(LIBC, BASH, GIT)),
    "other": MemoryPackage(path=path("d", "other-1"), tree={"bin": {"git": Executable(b"other")}}, priority=9),
}


@attrs.frozen
class Source:
    """A source that is pinned, or moves."""

    revision: str | None = "r1"

    def pin(self, tag):
        return Pin(kind="memory", url="https://example.org/set", revision=self.revision, fetch={})


class Recorder(list):
    """Keeps events, and answers which kinds came."""

    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


@pytest.fixture
def backend(tmp_path):
    """A storage on disk, which holds nothing half-written when the test ends."""
    backend = open_backend(tmp_path / "images")
    yield backend
    assert list(backend.list("staging/")) == []


def builder(backend, source=None, **options):
    options.setdefault("realiser", MemoryRealiser(PACKAGES))
    return ImageBuilder(source or Source(), backend, **options)


def members(backend, layer):
    data = b"".join(backend.stream(blob_key(layer.descriptor.digest)))
    archive = io.BytesIO()
    while data:  # members of gzip, one after the other
        member = zlib.decompressobj(wbits=31)
        archive.write(member.decompress(data) + member.flush())
        data = member.unused_data
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        return {member.name: member for member in tar}


class TestBuild:
    def test_the_image_is_whole_in_the_storage(self, backend):
        """Manifest, configuration and every layer can be read back, and agree with each other."""
        image = builder(backend).build(ImageSpec.parse("git"))
        manifest = Manifest.from_bytes(read_blob(backend, image.descriptor))
        config = ImageConfig.from_bytes(read_blob(backend, manifest.config))
        assert manifest == image.manifest
        assert config == image.config
        assert config.rootfs.diff_ids == tuple(layer.diff_id for layer in image.layers)
        assert len(config.history) == len(manifest.layers) == len(image.layers)
        for layer in manifest.layers:
            read_blob(backend, layer)

    def test_the_layers_are_the_closure_and_the_customisation(self, backend):
        """Every store path of the closure is in exactly one layer, and nothing else is."""
        image = builder(backend).build(ImageSpec.parse("git"))
        found = [
            name.split("/")[2]
            for layer in image.layers[:-1]
            for name in members(backend, layer)
            if name.startswith("nix/store/") and name.count("/") == 2
        ]
        assert sorted(found) == [LIBC.base, BASH.base, GIT.base]
        top = members(backend, image.layers[-1])
        assert top["bin/git"].linkname == f"{GIT}/bin/git"
        assert not any(name.startswith("nix/") for name in top)

    def test_the_storage_is_an_image_layout(self, backend):
        """oci-layout and index.json are there, and the index names the image."""
        image = builder(backend).build(ImageSpec.parse("git", tag="v1"))
        assert backend.get("oci-layout") == b'{"imageLayoutVersion":"1.0.0"}'
        (entry,) = ImageIndex.from_bytes(backend.get(INDEX_KEY)).manifests
        assert entry.digest == image.descriptor.digest
        assert entry.annotations == {"org.opencontainers.image.ref.name": "git:v1"}
        assert read_ref(backend, "git", "v1") == image.descriptor

    def test_every_name_is_in_the_index(self, backend):
        """Images of one storage do not hide each other."""
        names = ["git", "bash", "bash/git"]
        for name in names:
            builder(backend).build(ImageSpec.parse(name))
        assert [name for name, _, _ in list_refs(backend)] == ["bash", "bash/git", "git"]
        assert len(ImageIndex.from_bytes(backend.get(INDEX_KEY)).manifests) == 3

    def test_the_revision_is_recorded(self, backend):
        """Labels and annotations say where the packages come from."""
        image = builder(backend).build(ImageSpec.parse("git"))
        expected = {
            "org.opencontainers.image.revision": "r1",
            "org.opencontainers.image.source": "https://example.org/set",
        }
        assert image.manifest.annotations == expected
        assert image.config.config.labels == expected
        assert image.revision == "r1"

    def test_defaults_of_the_run_configuration(self, backend):
        """PATH is always there; a shell is the command only where the caller is silent."""
        config = builder(backend).build(ImageSpec.parse("bash")).config.config
        assert config.cmd == ("/bin/bash",)
        assert any(variable.startswith("PATH=") for variable in config.env)
        no_shell = builder(backend).build(ImageSpec.parse("git")).config.config
        assert no_shell.cmd == ()
        asked = ContainerConfig(entrypoint=("/bin/git",), env=("PATH=/x", "A=1"), labels={"x": "y"})
        mine = builder(backend).build(ImageSpec.parse("bash", config=asked)).config.config
        assert (mine.cmd, mine.entrypoint, mine.env) == ((), ("/bin/git",), ("PATH=/x", "A=1"))
        assert mine.labels["x"] == "y"

    def test_collisions_are_reported(self, backend):
        """Of two files of one name the better priority is linked, and both are told."""
        seen = Recorder()
        image = builder(backend, on_event=seen).build(ImageSpec.parse("git/other"))
        (collision,) = seen.of(events.FileCollision)
        assert collision.chosen == f"{GIT}/bin/git"
        assert members(backend, image.layers[-1])["bin/git"].linkname == collision.chosen

    def test_custom_files_are_in_the_top_layer(self, backend):
        """The embedder's files come with their content and mode."""
        spec = ImageSpec.parse("git", files=[CustomFile(path="/etc/motd", content=b"hi", mode=0o600)])
        image = builder(backend).build(spec)
        assert members(backend, image.layers[-1])["etc/motd"].mode == 0o600

    @pytest.mark.parametrize("codec", ["gzip", "zstd", "none"])
    def test_diff_ids_do_not_depend_on_the_codec(self, backend, tmp_path, codec):
        """The same content has the same diff_ids, however it is compressed."""
        plain = builder(open_backend(tmp_path / "plain"), codec="none").build(ImageSpec.parse("git"))
        image = builder(backend, codec=codec).build(ImageSpec.parse("git"))
        assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in plain.layers]

    def test_two_storages_give_equal_bytes(self, backend, tmp_path):
        """The same specification makes the same manifest anywhere, with one worker or many."""
        one = builder(backend, workers=1).build(ImageSpec.parse("bash/git"))
        other = builder(open_backend(tmp_path / "other"), workers=8).build(ImageSpec.parse("git/bash"))
        assert one.descriptor == other.descriptor


class TestCache:
    def test_a_pinned_image_is_found_without_the_realiser(self, backend):
        """The second build calls nobody and touches no layer."""
        first = builder(backend).build(ImageSpec.parse("git"))
        seen = Recorder()
        second = builder(backend, realiser=_Unreachable(), on_event=seen).build(ImageSpec.parse("git"))
        assert second.cached
        assert second == attrs.evolve(first, cached=True)
        assert seen.of(events.ManifestCached)
        assert not seen.of(events.LayerStarted)

    def test_a_moving_image_finds_its_layers(self, backend):
        """A source that moves is looked up again, but no layer is written twice."""
        moving = Source(revision=None)
        first = builder(backend, moving).build(ImageSpec.parse("git"))
        seen = Recorder()
        second = builder(backend, moving, on_event=seen).build(ImageSpec.parse("git"))
        assert not second.cached
        assert second.descriptor == first.descriptor
        assert not seen.of(events.LayerStarted)
        assert len(seen.of(events.LayerCached)) == len(first.layers)

    def test_layers_are_shared_between_images(self, backend):
        """A store path that another image brought is not written again."""
        builder(backend).build(ImageSpec.parse("bash"))
        seen = Recorder()
        builder(backend, on_event=seen).build(ImageSpec.parse("git"))
        assert len(seen.of(events.LayerCached)) == 2

    @pytest.mark.parametrize("which", ["manifest", "config", "layer"])
    def test_a_lost_blob_is_a_miss(self, backend, which):
        """A bucket that loses a blob costs a build, never a broken image."""
        first = builder(backend).build(ImageSpec.parse("git"))
        lost = {
            "manifest": first.descriptor,
            "config": first.manifest.config,
            "layer": first.manifest.layers[0],
        }[which]
        backend.delete(blob_key(lost.digest))
        second = builder(backend).build(ImageSpec.parse("git"))
        assert not second.cached
        assert second.descriptor == first.descriptor
        assert read_blob(backend, lost)

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format_version":99}'])
    def test_a_damaged_entry_is_a_miss_and_is_mended(self, backend, damage):
        """A cache entry that cannot be read is written anew."""
        maker = builder(backend)
        spec = ImageSpec.parse("git")
        first = maker.build(spec)
        key = maker.cache_key(spec, Source().pin("latest"))
        backend.replace(manifest_cache_key(str(key)), damage)
        backend.replace(layer_cache_key(first.layers[0].layer_key), damage)
        assert maker.build(spec).descriptor == first.descriptor
        assert maker.build(spec).cached

    def test_what_decides_the_bytes_is_in_the_key(self, backend):
        """No two builders that would make different images share a cache key."""
        spec, pin = ImageSpec.parse("git"), Source().pin("latest")
        keys = [
            builder(backend).cache_key(spec, pin),
            builder(backend, codec="zstd").cache_key(spec, pin),
            builder(backend, budget=7).cache_key(spec, pin),
            builder(backend, layerer=_Layerer()).cache_key(spec, pin),
            builder(backend, popularity=Popularity({"glibc": 7})).cache_key(spec, pin),
            builder(backend, popularity=Popularity({"glibc": 8})).cache_key(spec, pin),
            builder(backend, realiser=_Unreachable("other rules")).cache_key(spec, pin),
            builder(backend).cache_key(attrs.evolve(spec, platform=ARM64), pin),
            builder(backend).cache_key(spec, attrs.evolve(pin, revision="r2")),
        ]
        assert len({str(key) for key in keys}) == len(keys)
        assert builder(backend).cache_key(spec, attrs.evolve(pin, revision=None)) is None

    def test_the_first_writer_wins(self, backend):
        """Builders that race for one image all hand out the same manifest."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            images = list(pool.map(lambda _: builder(backend).build(ImageSpec.parse("git/bash")), range(16)))
        assert len({image.descriptor.digest for image in images}) == 1


class TestPlan:
    def test_a_plan_tells_layers_and_what_is_stored(self, backend):
        """A plan writes nothing, and knows which layers another image brought."""
        empty = builder(backend).plan(ImageSpec.parse("git"))
        assert [layer.built for layer in empty.layers] == [None] * 3
        assert list(backend.list("")) == []
        builder(backend).build(ImageSpec.parse("bash"))
        plan = builder(backend).plan(ImageSpec.parse("git"))
        stored = {path.name for layer in plan.layers if layer.built for path in layer.plan.paths}
        assert stored == {"glibc-2.36", "bash-5.2"}

    def test_the_budget_holds(self, backend):
        """As many layers as asked for, and one more for the customisation."""
        assert len(builder(backend, budget=1).build(ImageSpec.parse("git")).layers) == 2

    def test_the_layers_of_a_base_count(self, backend):
        """Base, store paths and customisation layer together are no more than engines take."""
        builder(backend, budget=94, base_layers=30)
        with pytest.raises(LayerBudgetError, match=r"94 and 32 other layers are more than 125.*at most 93"):
            builder(backend, budget=94, base_layers=31)

    @pytest.mark.parametrize("budget", [0, -1, 125, 126, True, "9"])
    def test_budgets_that_no_engine_takes_are_refused(self, backend, budget):
        """A builder that could make images nobody can run is never made."""
        with pytest.raises(LayerBudgetError):
            builder(backend, budget=budget)

    def test_an_unknown_codec_is_refused(self, backend):
        """A misspelt codec is found before any work."""
        with pytest.raises(InvalidConfig):
            builder(backend, codec="gzpi")

    def test_a_layerer_that_loses_paths_is_caught(self, backend):
        """What a strategy leaves out is never missing from an image."""
        with pytest.raises(LayerPlanError, match="left out 2"):
            builder(backend, layerer=_Layerer()).build(ImageSpec.parse("git"))


class TestFailures:
    def test_unknown_packages_are_listed_at_once(self, backend):
        """All names that cannot be used are told together, and nothing is stored."""
        with pytest.raises(PackageError) as caught:
            builder(backend).build(ImageSpec(packages=["gti", "bsah", "git"]))
        assert [problem.name for problem in caught.value.problems] == ["bsah", "gti"]
        assert list(backend.list("")) == []

    def test_a_path_that_cannot_be_read_leaves_nothing(self, backend):
        """A layer that fails publishes no manifest and no cache entry of its own."""
        broken = MemoryRealiser({**PACKAGES, "git": attrs.evolve(PACKAGES["git"], tree=_Trap())})
        with pytest.raises(StoreReadError):
            builder(backend, realiser=broken).build(ImageSpec.parse("git"))
        assert list(backend.list("refs/")) == []
        assert list(backend.list("cache/manifests/")) == []

    def test_no_thread_outlives_a_build(self, backend):
        """Whatever ends a build, its threads end with it."""
        before = set(threading.enumerate())
        builder(backend).build(ImageSpec.parse("git"))
        with pytest.raises(PackageError):
            builder(backend).build(ImageSpec.parse("nothing"))
        assert set(threading.enumerate()) == before

    def test_a_cancelled_build_stops(self, backend):
        """Cancelling from the outside ends the build with Cancelled and publishes nothing."""
        token = Cancellation()

        def cancel_at_the_first_layer(event):
            if isinstance(event, events.LayerStarted):
                token.cancel("enough")

        with pytest.raises(Cancelled, match="enough"):
            builder(backend).build(ImageSpec.parse("git"), on_event=cancel_at_the_first_layer, cancellation=token)
        assert list(backend.list("refs/")) == []

    @pytest.mark.parametrize(
        "moment", [events.SourceResolved, events.ClosureResolved, events.LayerStarted, events.LayerBuilt]
    )
    def test_an_interrupt_at_any_stage_leaves_nothing(self, backend, moment):
        """Ctrl-C ends the build wherever it is, with no thread and no name left."""

        def interrupt(event):
            if isinstance(event, moment):
                raise KeyboardInterrupt

        before = set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            builder(backend).build(ImageSpec.parse("git"), on_event=interrupt)
        assert set(threading.enumerate()) == before
        assert list(backend.list("refs/")) == []

    def test_a_failing_storage_is_the_cause(self, backend):
        """What the storage says is what the caller hears."""
        with pytest.raises(StorageError, match="no space here"):
            builder(_Full(backend)).build(ImageSpec.parse("git"))


class TestExecutors:
    def test_layers_are_written_in_other_processes(self, backend):
        """A process pool writes the layers, and the image is the same."""
        expected = builder(backend).build(ImageSpec.parse("git"))
        for key in [info.key for info in backend.list("")]:
            backend.delete(key)
        seen = Recorder()
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            image = builder(backend, executor=pool, on_event=seen).build(ImageSpec.parse("git"))
        assert image.descriptor == expected.descriptor
        assert len(seen.of(events.LayerBuilt)) == len(image.layers)


@attrs.frozen
class _Unreachable:
    """A realiser that must not be called."""

    id: str = MemoryRealiser(PACKAGES).id

    def evaluate(self, *arguments, **options):
        raise AssertionError("the realiser was called")

    realise = evaluate


class _Layerer:
    """A strategy that keeps one path and forgets the rest."""

    id = "forgetful"

    def plan(self, closure, popularity, budget):
        return [LayerPlan([closure.paths[0].path], closure.paths[0].nar_size)]


class _Trap(dict):
    """A tree that can be listed once, for its size and its links, and not be read afterwards."""

    def items(self):
        return {"bin": {"git": Executable(b"git")}, "trap": _Unreadable(b"x")}.items()


class _Unreadable(bytes):
    def __bool__(self):
        raise StoreReadError("the disk says no")


@attrs.frozen
class _Full:
    """A storage without space."""

    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def open_blob(self):
        raise StorageError("no space here")


def test_memory_store_is_a_reader():
    """The stand-in used above reads like the real ones."""
    assert [entry.name for entry in MemoryStore({GIT: PACKAGES["git"].tree}).entries(GIT)] == [b"", b"bin", b"bin/git"]


class TestFind:
    def test_what_was_never_built_is_not_found(self, backend):
        """Looking for an image builds nothing and stores nothing."""
        assert builder(backend).find(ImageSpec.parse("git")) is None
        assert list(backend.list("")) == []

    def test_what_was_built_is_found_under_any_name(self, backend):
        """An image that is in the cache gets the name it is asked for, without Nix."""
        built = builder(backend).build(ImageSpec.parse("git/bash"))
        without_packages = builder(backend, realiser=MemoryRealiser({}))
        found = without_packages.find(ImageSpec.parse("bash/git"))
        assert found is not None
        assert found.descriptor == built.descriptor
        assert read_ref(backend, "bash/git", "latest") == built.descriptor

    def test_a_given_pin_is_believed(self, backend):
        """A caller that has resolved the tag already gets the image of that revision."""
        pin = Source("r2").pin("latest")
        image = builder(backend).build(ImageSpec.parse("git"), pin=pin)
        assert image.revision == "r2"
        assert builder(backend).find(ImageSpec.parse("git")) is None
        assert builder(backend).find(ImageSpec.parse("git"), pin=pin) is not None

    def test_an_image_can_be_stored_without_a_name(self, backend):
        """With publish=False the blobs and cache entries are written, and no name changes."""
        image = builder(backend).build(ImageSpec.parse("git"), publish=False)
        assert builder(backend).find(ImageSpec.parse("git"), publish=False) is not None
        assert read_blob(backend, image.descriptor) == image.manifest.to_bytes()
        assert list(list_refs(backend)) == []

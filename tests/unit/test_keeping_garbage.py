"""gc: what is kept, what waits, what goes, and in which order."""

import os
import time

import attrs
import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InvalidConfig, StorageError
from nixery_core.keeping.candidates import read_candidates, write_candidates
from nixery_core.keeping.clock import storage_time
from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.garbage import collect_garbage
from nixery_core.keeping.sweep import Sweeper
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import INDEX, ImageIndex
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage import pins
from nixery_core.storage.blobs import blob_exists, image_blobs, put_blob
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.keys import (
    CANDIDATES_KEY,
    INDEX_KEY,
    LAYERS,
    LEASES,
    MANIFESTS,
    PINS,
    STAGING,
    blob_key,
    lease_key,
    pin_key,
    ref_key,
    staging_key,
)
from nixery_core.storage.layout import delete_ref, publish_ref
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.pins import Sweep, pinned
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

HOUR = 3600
DAY = 24 * HOUR
LIBC = StorePath("a" * 32, "glibc-2.36")
PACKAGES = {
    "glibc": MemoryPackage(path=LIBC, tree={"lib": {"libc.so.6": b"library" * 1000}}),
    "git": MemoryPackage(path=StorePath("c" * 32, "git-2"), tree={"bin": {"git": b"git"}}, references=(LIBC,)),
    "bash": MemoryPackage(path=StorePath("d" * 32, "bash-5"), tree={"bin": {"bash": b"bash"}}, references=(LIBC,)),
}


class Source:
    def pin(self, tag):
        return Pin(kind="memory", url="memory", revision=tag, fetch={})


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "images")


def builder(backend):
    return ImageBuilder(Source(), backend, realiser=MemoryRealiser(PACKAGES))


def build(backend, name="git", tag="latest", **options):
    return builder(backend).build(ImageSpec.parse(name, tag=tag), **options)


def passes(backend, seconds):
    """Let time pass: everything in the storage, and what it knows of garbage, becomes older."""
    for info in backend.list(""):
        then = info.modified - seconds
        os.utime(backend.root / info.key, (then, then))
    write_candidates(backend, {key: since - seconds for key, since in read_candidates(backend).items()})


def blobs(backend):
    return {info.key for info in backend.list("blobs/")}


def needed(backend, *images):
    return {blob_key(blob.digest) for image in images for blob in image_blobs(backend, image.descriptor)}


class TestWhatIsKept:
    def test_named_images_stay_for_ever(self, backend):
        """A name keeps all that its image needs, however old it is, and nothing else."""
        git, bash = build(backend), build(backend, "bash")
        delete_ref(backend, "bash", "latest")
        passes(backend, 400 * DAY)
        assert collect_garbage(backend).removed_blobs == 0
        passes(backend, 2 * DAY)
        report = collect_garbage(backend)
        assert blobs(backend) == needed(backend, git)
        assert report.removed_blobs > 0
        assert report.names == 1
        assert build(backend).descriptor == git.descriptor
        # the layer that both have is there still, the others are written again
        assert build(backend, "bash").descriptor == bash.descriptor
        assert fsck(backend).problems == ()

    def test_images_without_a_name_stay_while_they_are_asked_for(self, backend):
        """Each find in the cache begins the keep period anew; after it the image is garbage."""
        image = build(backend, publish=False)
        for _ in range(3):
            passes(backend, 20 * DAY)
            assert collect_garbage(backend).waiting_blobs == 0
            assert build(backend, publish=False).cached
        count = len(needed(backend, image))
        passes(backend, 31 * DAY)
        report = collect_garbage(backend)
        assert report.waiting_blobs == count
        assert report.removed_entries == len(image.layers) + 1
        assert list(backend.list(MANIFESTS)) == list(backend.list(LAYERS)) == []
        passes(backend, 2 * DAY)
        assert collect_garbage(backend).removed_blobs == count

    def test_the_images_of_an_index_stay(self, backend):
        """A name for several platforms keeps the images of all of them."""
        images = [build(backend, name, publish=False) for name in ("git", "bash")]
        index = put_blob(
            backend, ImageIndex(manifests=tuple(i.descriptor for i in images)).to_bytes(), media_type=INDEX
        )
        publish_ref(backend, "all", "v1", index)
        passes(backend, 400 * DAY)
        collect_garbage(backend, grace=0)
        assert blobs(backend) == {blob_key(index.digest)} | needed(backend, *images)
        delete_ref(backend, "all", "v1")
        collect_garbage(backend, grace=0)
        assert blobs(backend) == set()

    def test_what_a_young_manifest_needs_stays(self, backend):
        """An image that was moved away from its name a moment ago is whole for those who pull it by digest."""
        image = build(backend)
        passes(backend, 400 * DAY)
        # the same layers in a new manifest, which has its name for a moment only
        manifest = attrs.evolve(image.manifest, annotations={"new": "yes"})
        new = put_blob(backend, manifest.to_bytes(), media_type=manifest.MEDIA_TYPE)
        publish_ref(backend, "new", "v1", new)
        for name, tag in [("new", "v1"), ("git", "latest")]:
            delete_ref(backend, name, tag)
        for _ in range(2):
            collect_garbage(backend, keep=0)
            assert all(blob_exists(backend, blob) for blob in image_blobs(backend, new))
            passes(backend, 11 * HOUR)
        for _ in range(2):
            passes(backend, 2 * DAY)
            collect_garbage(backend, keep=0)
        assert blobs(backend) == set()

    def test_pinned_blobs_stay(self, backend):
        """What someone is about to publish is not removed, whatever the options."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        with pinned(backend, list(image_blobs(backend, image.descriptor))):
            assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 0
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 5
        assert blobs(backend) == set()

    def test_pins_that_are_done_go(self, backend):
        """A pin that stayed for a collector goes with the next one that no such collector is beside of."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        blobs_of = list(image_blobs(backend, image.descriptor))
        with Sweeper(backend, workers=1) as first:
            with pinned(backend, blobs_of):
                pass
            # this one learns of a name that it may have missed; one that begins now reads the name
            assert {blob.digest for blob in blobs_of} <= first.pinned()
            with Sweeper(backend, workers=1) as second:
                assert second.pinned() == set()
            assert len(list(backend.list(PINS))) == 1
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 5
        assert list(backend.list(PINS)) == []

    def test_a_dead_pin_is_removed(self, backend):
        """A pin that is older than a day holds nothing."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        document = pins.Pin(blobs=tuple(blob.digest for blob in image_blobs(backend, image.descriptor)))
        backend.replace(pin_key(), document.to_bytes())
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 0
        passes(backend, 2 * DAY)
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs > 0
        assert list(backend.list(PINS)) == []

    def test_a_dead_lease_is_removed(self, backend):
        """What a killed registry left of its builds goes after an hour; a lease that is renewed stays."""
        backend.create(lease_key("a" * 64, 1), b"{}")
        collect_garbage(backend)
        assert [info.key for info in backend.list(LEASES)] == [lease_key("a" * 64, 1)]
        passes(backend, 2 * HOUR)
        backend.create(lease_key("b" * 64, 1), b"{}")
        collect_garbage(backend)
        assert [info.key for info in backend.list(LEASES)] == [lease_key("b" * 64, 1)]

    def test_what_a_dead_writer_left_goes_after_a_day(self, backend):
        """What is on its way in belongs to a build that runs, whatever the grace is; after a day its writer is dead."""
        backend.replace(staging_key(), b"young")
        assert collect_garbage(backend, grace=0, keep=0).removed_unfinished == 0
        passes(backend, 2 * DAY)
        backend.replace(young := staging_key(), b"young")
        assert collect_garbage(backend, dry_run=True).removed_unfinished == 1
        assert len(list(backend.list(STAGING))) == 2
        assert collect_garbage(backend).removed_unfinished == 1
        assert [info.key for info in backend.list(STAGING)] == [young]

    def test_uploads_that_nobody_completes_go_after_a_day(self, backend):
        """Parts that a killed writer sent cost space, and no listing of objects shows them."""
        now = storage_time(backend)
        uploads = [
            UnfinishedUpload(key="staging/a", id="1", started=now - 2 * DAY),
            UnfinishedUpload(key="staging/b", id="2", started=now - HOUR),
            UnfinishedUpload(key="staging/c", id="3"),
        ]

        class WithUploads(LocalBackend):
            def list_uploads(self):
                return iter(list(uploads))

            def abort_upload(self, upload):
                uploads.remove(upload)

        storage = WithUploads(backend.root)
        assert collect_garbage(storage, dry_run=True).removed_unfinished == 1
        assert len(uploads) == 3
        assert collect_garbage(storage, grace=0, keep=0).removed_unfinished == 1
        assert [upload.id for upload in uploads] == ["2", "3"]


class TestWhatWaits:
    def test_garbage_stays_for_the_grace(self, backend):
        """A blob goes when two runs that are a grace apart found it unneeded, by the clock of the storage."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        passes(backend, 40 * DAY)
        count = len(blobs(backend))
        for hours in (0, 20, 3):
            passes(backend, hours * HOUR)
            report = collect_garbage(backend)
            assert (report.waiting_blobs, report.removed_blobs) == (count, 0)
            assert report.next_in is not None
        assert 0 < report.next_in <= HOUR + 60
        passes(backend, 2 * HOUR)
        report = collect_garbage(backend)
        assert (report.waiting_blobs, report.removed_blobs, report.next_in) == (0, count, None)
        assert report.removed_bytes > image.size
        assert backend.stat(CANDIDATES_KEY) is None

    def test_what_is_needed_again_waits_anew(self, backend):
        """A build that uses a waiting layer ends its waiting."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        passes(backend, 40 * DAY)
        collect_garbage(backend)
        passes(backend, 2 * DAY)
        assert build(backend).descriptor == image.descriptor
        assert collect_garbage(backend).waiting_blobs == 0
        delete_ref(backend, "git", "latest")
        passes(backend, 40 * DAY)
        assert collect_garbage(backend).removed_blobs == 0

    def test_the_young_are_not_judged(self, backend):
        """A layer that a running build has just written is needed by nothing yet, and is no garbage."""
        put_blob(backend, b"a layer", media_type="text/plain")
        report = collect_garbage(backend)
        assert (report.kept_blobs, report.waiting_blobs) == (1, 0)

    def test_lost_notes_cost_time_only(self, backend):
        """Candidates that cannot be read are as good as none."""
        build(backend)
        delete_ref(backend, "git", "latest")
        passes(backend, 40 * DAY)
        collect_garbage(backend)
        passes(backend, 2 * DAY)
        for damage in (
            b"no JSON",
            b"[]",
            b'{"format_version":2,"since":{}}',
            b'{"format_version":1,"since":{"a":"b"}}',
        ):
            backend.replace(CANDIDATES_KEY, damage)
            assert collect_garbage(backend).removed_blobs == 0

    def test_a_clock_that_was_ahead(self, backend):
        """Candidates from the future become candidates of now."""
        build(backend)
        delete_ref(backend, "git", "latest")
        passes(backend, 40 * DAY)
        write_candidates(backend, {key: time.time() + 900 * DAY for key in blobs(backend)})
        collect_garbage(backend)
        passes(backend, 2 * DAY)
        assert collect_garbage(backend).removed_blobs > 0

    def test_a_storage_without_times(self, backend, monkeypatch):
        """Where nobody tells how old blobs are, they wait from when they are first seen."""
        build(backend)
        delete_ref(backend, "git", "latest")
        listing = LocalBackend.list
        monkeypatch.setattr(
            LocalBackend, "list", lambda self, prefix: (attrs.evolve(i, modified=None) for i in listing(self, prefix))
        )
        stat = LocalBackend.stat
        monkeypatch.setattr(
            LocalBackend, "stat", lambda self, key: (found := stat(self, key)) and attrs.evolve(found, modified=None)
        )
        assert abs(storage_time(backend) - time.time()) < 60
        for info in list(backend.list(MANIFESTS)):
            backend.delete(info.key)
        assert collect_garbage(backend).waiting_blobs == 5
        write_candidates(backend, {key: since - 2 * DAY for key, since in read_candidates(backend).items()})
        assert collect_garbage(backend).removed_blobs == 5


class TestWhatGoes:
    def test_nothing_is_left_of_nothing(self, backend):
        """Without names and with no grace one run empties the storage of blobs and caches."""
        for name in ("git", "bash"):
            build(backend, name)
            delete_ref(backend, name, "latest")
        report = collect_garbage(backend, grace=0, keep=0)
        assert blobs(backend) == set()
        assert [info.key for info in backend.list("")] == [INDEX_KEY, "oci-layout"]
        assert report.kept_blobs == report.kept_bytes == report.waiting_blobs == 0

    def test_manifests_go_before_what_they_need(self, backend, monkeypatch):
        """At no moment is there a manifest that lacks a blob, so whoever pulls by digest gets all or a 404."""
        images = [build(backend, name) for name in ("git", "bash")]
        index = put_blob(
            backend, ImageIndex(manifests=tuple(i.descriptor for i in images)).to_bytes(), media_type=INDEX
        )
        for name in ("git", "bash"):
            delete_ref(backend, name, "latest")
        order = []
        delete = LocalBackend.delete
        monkeypatch.setattr(LocalBackend, "delete", lambda self, key: (order.append(key), delete(self, key))[1])
        collect_garbage(backend, grace=0, keep=0)
        gone = [key for key in order if key.startswith("blobs/")]
        assert gone[0] == blob_key(index.digest)
        assert set(gone[1:3]) == {blob_key(image.descriptor.digest) for image in images}
        entries = [number for number, key in enumerate(order) if key.startswith("cache/")]
        assert max(entries) < order.index(gone[0])

    def test_a_dry_run_writes_nothing(self, backend):
        """It tells what the next run does, and leaves every object as it is."""
        build(backend)
        build(backend, "bash")
        delete_ref(backend, "bash", "latest")
        before = list(backend.list(""))
        planned = collect_garbage(backend, grace=0, keep=0, dry_run=True)
        assert list(backend.list("")) == before
        assert attrs.evolve(planned, dry_run=False) == collect_garbage(backend, grace=0, keep=0)
        # the layer that both have stays
        assert planned.removed_blobs == 4

    def test_a_blob_that_is_written_again_stays(self, backend, monkeypatch):
        """What has become young since it was listed is in use."""
        build(backend)
        delete_ref(backend, "git", "latest")
        passes(backend, 2 * DAY)
        remove = Sweeper.remove

        def touch(self, infos):
            for info in infos:
                os.utime(backend.root / info.key)
            return remove(self, infos)

        monkeypatch.setattr(Sweeper, "remove", touch)
        report = collect_garbage(backend, grace=0, keep=0)
        assert report.removed_blobs == 0
        assert fsck(backend).broken == ()

    def test_servers_that_tell_times_less_exactly(self, backend, monkeypatch):
        """Some tell whole seconds of one object, and more in a listing: that is no change."""
        build(backend)
        delete_ref(backend, "git", "latest")
        stat = LocalBackend.stat
        monkeypatch.setattr(
            LocalBackend,
            "stat",
            lambda self, key: (found := stat(self, key)) and attrs.evolve(found, modified=float(int(found.modified))),
        )
        passes(backend, 2 * DAY)
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 5

    @pytest.mark.parametrize("later", [-5.0, 5.0])
    def test_servers_whose_listing_tells_other_times(self, backend, monkeypatch, later):
        """Of a copied object some list the time of its source, seconds before or after: it was not written again."""
        build(backend)
        delete_ref(backend, "git", "latest")
        everything = LocalBackend.list
        monkeypatch.setattr(
            LocalBackend,
            "list",
            lambda self, prefix: (
                attrs.evolve(info, modified=info.modified + later) for info in everything(self, prefix)
            ),
        )
        passes(backend, 2 * DAY)
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 5

    def test_time_that_ran_out(self, backend):
        """A collector that stood still stops removing: by then publishers may take it for dead."""
        build(backend)
        infos = list(backend.list("blobs/"))
        clock = iter([0.0, 0.0, 0.0, 59.0, *[61.0] * 20])
        with Sweeper(backend, workers=1, seconds=lambda: next(clock)) as sweeper:
            removed = sweeper.remove(infos)
        assert len(removed) < len(infos)
        assert list(backend.list("gc/sweeps/")) == []


class TestFailures:
    @pytest.mark.parametrize("options", [{"grace": -1}, {"keep": -1}, {"workers": 0}])
    def test_nonsense_is_refused(self, backend, options):
        """Before anything is read."""
        with pytest.raises(InvalidConfig):
            collect_garbage(backend, **options)

    @pytest.mark.parametrize("damage", ["ref", "manifest", "kind", "pin"])
    def test_what_cannot_be_read_may_need_anything(self, backend, damage):
        """One name, manifest or pin that cannot be read, and nothing is removed."""
        image = build(backend)
        build(backend, "bash")
        delete_ref(backend, "bash", "latest")
        if damage == "ref":
            backend.replace(ref_key("git", "latest"), b"{}")
        elif damage == "kind":
            backend.replace(ref_key("git", "latest"), image.layers[0].descriptor.to_bytes())
        elif damage == "pin":
            backend.replace(pin_key(), b'{"format_version":2}')
        else:
            backend.replace(blob_key(image.descriptor.digest), b"x" * image.descriptor.size)
        before = blobs(backend)
        with pytest.raises(StorageError) as raised:
            collect_garbage(backend, grace=0, keep=0)
        assert raised.value.hint
        assert blobs(backend) == before
        assert list(backend.list("gc/sweeps/")) == []

    def test_a_name_without_its_manifest_keeps_nothing(self, backend):
        """It is no reason to stop: what is not there needs nothing."""
        image = build(backend)
        backend.delete(blob_key(image.descriptor.digest))
        assert collect_garbage(backend, grace=0, keep=0).removed_blobs == 4

    def test_a_storage_that_fails_leaves_no_sweep(self, backend, monkeypatch):
        """Publishers do not wait for a collector that gave up."""
        build(backend)
        delete_ref(backend, "git", "latest")
        delete = LocalBackend.delete

        def fail(self, key):
            if key.startswith("blobs/"):
                raise StorageError("the cable is out", key=key)
            delete(self, key)

        monkeypatch.setattr(LocalBackend, "delete", fail)
        with pytest.raises(StorageError, match="cable"):
            collect_garbage(backend, grace=0, keep=0)
        assert list(backend.list("gc/sweeps/")) == []

    def test_a_dead_collector_is_buried(self, backend):
        """The sweep of a collector that was killed is removed by a later one."""
        backend.replace("gc/sweeps/dead", Sweep(turn=3).to_bytes())
        collect_garbage(backend)
        assert backend.stat("gc/sweeps/dead")
        passes(backend, 2 * DAY)
        collect_garbage(backend)
        assert backend.stat("gc/sweeps/dead") is None

    def test_a_build_survives_the_loss_of_its_layers(self, backend, monkeypatch):
        """A collector that takes an old layer between its use and the name makes the build write it again."""
        image = build(backend)
        delete_ref(backend, "git", "latest")
        lost = image.layers[0].descriptor
        publish = publish_ref
        calls = []

        def lose(*arguments):
            if not calls:
                backend.delete(blob_key(lost.digest))
            calls.append(arguments)
            publish(*arguments)

        for info in list(backend.list(MANIFESTS)):
            backend.delete(info.key)
        monkeypatch.setattr("nixery_core._image_work.publish_ref", lose)
        assert build(backend).descriptor == image.descriptor
        assert len(calls) == 2
        assert blob_exists(backend, lost)


def test_elsewhere_the_index_is_written():
    """In a storage whose index does not follow each change, gc brings it up to date."""
    backend = open_backend("memory://gc-index")
    build(backend)
    assert ImageIndex.from_bytes(backend.get(INDEX_KEY)).manifests == ()
    collect_garbage(backend)
    assert len(ImageIndex.from_bytes(backend.get(INDEX_KEY)).manifests) == 1


def test_many_turns(backend, monkeypatch):
    """More blobs than fit into one turn are removed in several."""
    monkeypatch.setattr("nixery_core.keeping.garbage.BATCH", 4)
    monkeypatch.setattr("nixery_core.keeping.sweep.BATCH", 4)
    for number in range(30):
        put_blob(backend, b"%d" % number, media_type="text/plain")
    assert collect_garbage(backend, grace=0).removed_blobs == 30

"""fsck: each kind of damage is found and named, what can be repaired is, and the rest is left alone."""

import os
import threading
import time

import attrs
import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InvalidConfig, ObjectNotFound, StorageError
from nixery_core.keeping.fsck import fsck
from nixery_core.keeping.parallel import each
from nixery_core.keeping.problem import ProblemKind
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import REF_NAME, Descriptor, ImageIndex
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.capabilities import UnfinishedUpload
from nixery_core.storage.image_index import write_index
from nixery_core.storage.keys import (
    CANDIDATES_KEY,
    INDEX_KEY,
    OCI_LAYOUT_KEY,
    blob_key,
    layer_cache_key,
    pin_key,
    ref_key,
    staging_key,
)
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

DAY = 24 * 3600
LIBC = StorePath("a" * 32, "glibc-2.36")
PACKAGES = {
    "glibc": MemoryPackage(path=LIBC, tree={"lib": {"libc.so.6": b"library" * 1000}}),
    "git": MemoryPackage(path=StorePath("c" * 32, "git-2"), tree={"bin": {"git": b"git"}}, references=(LIBC,)),
}


class Source:
    def pin(self, tag):
        return Pin(kind="memory", url="memory", revision="r1", fetch={})


@pytest.fixture(params=["directory", "memory"])
def backend(request, tmp_path):
    return open_backend(tmp_path / "images" if request.param == "directory" else f"memory://fsck-{tmp_path.name}")


@pytest.fixture
def local(tmp_path):
    return open_backend(tmp_path / "images")


def build(backend, name="git"):
    return ImageBuilder(Source(), backend, realiser=MemoryRealiser(PACKAGES)).build(ImageSpec.parse(name))


def kinds(report):
    return sorted(problem.kind.value for problem in report.problems)


def age(backend, key, seconds):
    then = time.time() - seconds
    os.utime(backend.root / key, (then, then))


def damage(backend, blob, data=None):
    """Put other bytes of the same number in the place of a blob."""
    backend.replace(blob_key(blob.digest), data if data is not None else b"X" * blob.size)


def test_a_healthy_storage_has_no_problems(backend):
    """After builds every object is known and right, and every byte was read."""
    image = build(backend)
    build(backend, "glibc")
    write_index(backend)
    report = fsck(backend)
    assert report.problems == ()
    assert report.objects == len(list(backend.list("")))
    assert report.blobs == len(list(backend.list("blobs/")))
    assert report.bytes_read == sum(info.size for info in backend.list("blobs/")) > image.size


def test_nothing_is_no_problem(tmp_path):
    """A storage that does not exist yet is healthy, and looking at it creates nothing."""
    assert fsck(open_backend(tmp_path / "none")).problems == ()
    assert not (tmp_path / "none").exists()


def test_looking_writes_nothing(local):
    """Without repair the storage may be one that can only be read."""
    image = build(local)
    damage(local, image.layers[0].descriptor)
    local.delete(INDEX_KEY)
    before = {info.key: info for info in local.list("")}
    assert fsck(local).broken
    assert {info.key: info for info in local.list("")} == before


class TestBlobs:
    @pytest.mark.parametrize("which", ["layer", "config", "manifest"])
    def test_a_wrong_blob(self, backend, which):
        """Other bytes of the same size are found by the hash; repaired, the next build makes the same image."""
        image = build(backend)
        blobs = {"layer": image.layers[0].descriptor, "config": image.manifest.config, "manifest": image.descriptor}
        damage(backend, blobs[which])
        report = fsck(backend)
        assert blob_key(blobs[which].digest) in {problem.key for problem in report.broken}
        assert any(problem.kind is ProblemKind.WRONG_BLOB for problem in report.problems)
        assert not any(problem.repaired for problem in report.problems)
        repaired = fsck(backend, repair=True)
        # the blob and the entries that need it are gone; of its name the next build takes care
        assert all(problem.repaired is not problem.key.startswith("refs/") for problem in repaired.problems)
        assert backend.stat(blob_key(blobs[which].digest)) is None
        again = build(backend)
        assert again.descriptor == image.descriptor
        write_index(backend)
        assert fsck(backend).problems == ()

    def test_a_truncated_blob(self, backend):
        """A blob of another size is found without reading it, and the next build writes it again."""
        image = build(backend)
        damage(backend, image.layers[0].descriptor, b"short")
        report = fsck(backend, quick=True)
        assert report.bytes_read == 0
        assert ProblemKind.MISSING_BLOB in {problem.kind for problem in report.broken}
        build(backend)
        write_index(backend)
        assert fsck(backend).problems == ()

    def test_quick_reads_no_layer(self, backend):
        """What only its hash can tell stays unknown to the quick look."""
        damage(backend, build(backend).layers[0].descriptor)
        write_index(backend)
        assert fsck(backend, quick=True).problems == ()

    def test_a_lost_blob(self, backend):
        """The name is broken and its cache entries dangle; they are removed, the name stays for the next build."""
        image = build(backend)
        write_index(backend)
        lost = image.layers[0].descriptor
        backend.delete(blob_key(lost.digest))
        report = fsck(backend, repair=True)
        assert kinds(report) == ["dangling-entry", "dangling-entry", "missing-blob"]
        assert str(lost.digest) in report.broken[0].detail
        assert report.broken[0].key == ref_key("git", "latest")
        assert kinds(fsck(backend)) == ["missing-blob"]
        build(backend)
        assert fsck(backend).problems == ()

    def test_a_blob_that_is_written_again_meanwhile_stays(self, local, monkeypatch):
        """Between finding a wrong blob and removing it a build may have mended it."""
        image = build(local)
        layer = image.layers[0].descriptor
        right = read_blob(local, layer)
        damage(local, layer)
        delete = LocalBackend.delete

        def mend(self, key):
            # cache entries go before blobs: this is after the look and before the removal
            if key.startswith("cache/layers"):
                damage(local, layer, right)
            delete(self, key)

        monkeypatch.setattr(LocalBackend, "delete", mend)
        report = fsck(local, repair=True)
        (wrong,) = (problem for problem in report.problems if problem.kind is ProblemKind.WRONG_BLOB)
        assert not wrong.repaired
        assert read_blob(local, layer) == right


class TestNames:
    def test_a_name_without_its_manifest(self, backend):
        """The name stays: it says what to build."""
        image = build(backend)
        write_index(backend)
        backend.delete(blob_key(image.descriptor.digest))
        report = fsck(backend, repair=True)
        assert kinds(report) == ["dangling-entry", "missing-blob"]
        build(backend)
        assert fsck(backend).problems == ()

    @pytest.mark.parametrize("data", [b"no JSON", b"{}", b'{"digest":"sha256:0","mediaType":"a","size":1}'])
    def test_a_name_for_nothing(self, backend, data):
        """A ref that cannot be read is removed."""
        build(backend)
        write_index(backend)
        backend.replace(ref_key("git", "v2"), data)
        report = fsck(backend, repair=True)
        assert kinds(report) == ["wrong-ref"]
        assert report.broken[0].repaired
        assert fsck(backend).problems == ()

    def test_a_name_for_something_else(self, backend):
        """A name that stands for a layer is broken, and is left to whoever wrote it."""
        layer = build(backend).layers[0].descriptor
        write_index(backend)
        backend.replace(ref_key("layer", "v1"), layer.to_bytes())
        report = fsck(backend, repair=True)
        assert [problem.kind for problem in report.broken] == [ProblemKind.WRONG_MANIFEST]
        assert not report.broken[0].repaired

    def test_a_name_with_a_wrong_size(self, backend):
        """The size in a ref is checked like that of any descriptor."""
        image = build(backend)
        write_index(backend)
        backend.replace(ref_key("git", "v2"), attrs.evolve(image.descriptor, size=3).to_bytes())
        assert [problem.key for problem in fsck(backend).broken] == [ref_key("git", "v2")]


class TestCaches:
    def test_damaged_entries(self, backend):
        """Entries that cannot be read, or lie under another key, are misses, and are removed."""
        image = build(backend)
        write_index(backend)
        backend.replace("cache/layers/k", b"no JSON")
        backend.replace("cache/manifests/k", b"{}")
        backend.replace("cache/layers/other", backend.get(layer_cache_key(image.layers[0].layer_key)))
        report = fsck(backend, repair=True)
        assert kinds(report) == ["wrong-entry"] * 3
        assert not report.broken
        assert all(problem.repaired for problem in report.problems)
        assert fsck(backend).problems == ()


class TestLeftovers:
    def test_what_died_is_removed_when_it_is_old(self, local):
        """Staging, pins and leases of the last hours may belong to someone; older ones are removed."""
        build(local)
        old = [staging_key(), pin_key(), "gc/sweeps/s", "gc/clock/c", f"leases/{'a' * 64}/1"]
        new = [staging_key(), pin_key(), f"leases/{'b' * 64}/2"]
        for key in (*old, *new):
            local.replace(key, b"x")
        for key in old:
            age(local, key, 2 * DAY)
        assert kinds(fsck(local)) == ["old-mark"] * 4 + ["old-staging"]
        report = fsck(local, repair=True)
        assert not report.broken
        assert {problem.key for problem in report.problems if problem.repaired} == set(old)
        assert fsck(local).problems == ()
        assert all(local.stat(key) for key in new)

    def test_the_grace_is_chosen(self, local):
        """With no grace everything unfinished is left over: whoever says so says that nothing runs."""
        keys = [pin_key(), staging_key()]
        for key in keys:
            local.replace(key, b"x")
            age(local, key, 5)
        assert fsck(local, grace=60).problems == ()
        assert [problem.key for problem in fsck(local, grace=0, repair=True).problems] == keys

    def test_uploads_in_parts(self):
        """Unfinished uploads of a storage that tells of them are aborted when they are old."""
        uploads = [
            UnfinishedUpload(key="staging/a", id="1", started=time.time() - 2 * DAY),
            UnfinishedUpload(key="staging/b", id="2", started=time.time()),
            UnfinishedUpload(key="staging/c", id="3"),
        ]
        inner = open_backend("memory://fsck-uploads")

        class WithUploads:
            def __getattr__(self, name):
                return getattr(inner, name)

            def list_uploads(self):
                return iter(list(uploads))

            def abort_upload(self, upload):
                uploads.remove(upload)

        backend = WithUploads()
        assert kinds(fsck(backend)) == ["old-upload"]
        assert len(uploads) == 3
        (problem,) = fsck(backend, repair=True).problems
        assert problem.repaired
        assert [upload.id for upload in uploads] == ["2", "3"]

    def test_what_is_not_ours_is_left_alone(self, backend):
        """Other objects are told of and never touched."""
        build(backend)
        write_index(backend)
        keys = ["readme", "blobs/sha256/abc", "blobs/md5/" + "0" * 32, "cache/x", "refs/x", "gc/x", "leases/x/y", "z/a"]
        for key in keys:
            backend.replace(key, b"x")
        backend.replace(CANDIDATES_KEY, b"{}")
        report = fsck(backend, repair=True, grace=0)
        assert kinds(report) == ["foreign-key"] * len(keys)
        assert not report.broken
        assert all(backend.stat(key) for key in keys)


class TestIndex:
    @pytest.mark.parametrize("change", ["lost", "damaged", "lacking", "other", "layout"])
    def test_a_directory_has_the_index_that_its_names_make(self, local, change):
        """Whatever the index lacks or says too much, it is made again."""
        image = build(local)
        right = local.get(INDEX_KEY)
        other = attrs.evolve(image.descriptor, annotations={REF_NAME: "other:v1"})
        if change in ("lost", "layout"):
            local.delete(INDEX_KEY if change == "lost" else OCI_LAYOUT_KEY)
        else:
            data = {"damaged": b"[]", "lacking": ImageIndex(manifests=()).to_bytes()}
            local.replace(INDEX_KEY, data.get(change, ImageIndex(manifests=(other,)).to_bytes()))
        report = fsck(local)
        assert kinds(report) == ["wrong-index"]
        assert not report.broken
        assert fsck(local, repair=True).problems[0].repaired
        assert local.get(INDEX_KEY) == right
        assert fsck(local).problems == ()

    def test_elsewhere_it_may_lack_names(self):
        """In a bucket the index is written on demand, so it may lack names; what it has must be so."""
        backend = open_backend("memory://fsck-index")
        image = build(backend)
        assert fsck(backend).problems == ()
        other = attrs.evolve(image.descriptor, annotations={REF_NAME: "other:v1"})
        backend.replace(INDEX_KEY, ImageIndex(manifests=(other,)).to_bytes())
        assert kinds(fsck(backend)) == ["wrong-index"]


class TestArguments:
    @pytest.mark.parametrize("options", [{"grace": -1}, {"workers": 0}])
    def test_nonsense_is_refused(self, local, options):
        """Before anything is read."""
        with pytest.raises(InvalidConfig):
            fsck(local, **options)

    def test_progress_is_told(self, local):
        """The callback hears of each part of the storage."""
        build(local)
        heard = []
        report = fsck(local, on_progress=heard.append)
        assert {"blobs", "cache", "refs"} <= {progress.stage for progress in heard}
        assert max(progress.size for progress in heard) <= report.bytes_read

    def test_a_storage_that_fails_is_an_error(self, local, monkeypatch):
        """What cannot be read is not called healthy, and no thread is left."""
        build(local)

        def fail(self, key):
            raise StorageError("the cable is out", key=key)

        monkeypatch.setattr(LocalBackend, "get", fail)
        with pytest.raises(StorageError, match="cable"):
            fsck(local)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("nixery-core")]


class TestEach:
    def test_it_takes_no_more_than_it_needs(self):
        """Of an endless stream of things only those are taken whose results are near."""
        taken = 0

        def things():
            nonlocal taken
            while True:
                taken += 1
                yield taken

        results = each(lambda number: number * 2, things(), workers=2)
        assert [next(results) for _ in range(5)] == [2, 4, 6, 8, 10]
        assert taken < 20
        results.close()

    def test_the_first_failure_ends_it(self):
        """An exception comes in its place, and is the one that was raised."""

        def fail(number):
            if number == 2:
                raise ObjectNotFound("two")
            return number

        results = each(fail, range(100), workers=3)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ObjectNotFound, match="two"):
            next(results)


def test_the_digest_in_a_key_counts():
    """A blob under the digest of another one is wrong, though nothing names it."""
    backend = open_backend("memory://fsck-digest")
    digest = Descriptor.of("", b"expected").digest
    backend.replace(blob_key(digest), b"something else")
    assert [problem.key for problem in fsck(backend, repair=True).broken] == [blob_key(digest)]
    assert backend.stat(blob_key(digest)) is None

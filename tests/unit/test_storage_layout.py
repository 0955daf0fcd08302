"""Names, tags and the index of a storage."""

import json
import threading
import time

import pytest

from nixery_core.errors import DigestMismatch, InvalidDocument, InvalidKey, ObjectNotFound
from nixery_core.model.oci import CONFIG, INDEX, LAYER, MANIFEST, REF_NAME, Descriptor, ImageIndex, Manifest
from nixery_core.storage.blobs import image_blobs, put_blob, verified
from nixery_core.storage.image_index import read_names, write_index
from nixery_core.storage.keys import INDEX_KEY, blob_key, parse_blob_key, ref_key
from nixery_core.storage.layout import delete_ref, list_names, list_refs, list_tags, publish_ref, read_ref
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend


@pytest.fixture(params=["directory", "memory"])
def backend(request, tmp_path):
    return open_backend(tmp_path / "images" if request.param == "directory" else f"memory://{tmp_path.name}")


@pytest.fixture
def local(tmp_path):
    return open_backend(tmp_path / "images")


def image(backend, text="one"):
    config = put_blob(backend, json.dumps(text).encode(), media_type=CONFIG)
    layers = tuple(put_blob(backend, f"{text} {number}".encode(), media_type=LAYER) for number in range(2))
    manifest = Manifest(config=config, layers=layers)
    return put_blob(backend, manifest.to_bytes(), media_type=MANIFEST)


def indexed(backend):
    index = ImageIndex.from_bytes(backend.get(INDEX_KEY))
    return {entry.annotations[REF_NAME]: entry.digest for entry in index.manifests}


class TestPublishing:
    def test_a_name_is_found_again(self, backend):
        """What was published is what the name stands for, until it is published anew."""
        first, second = image(backend), image(backend, "two")
        publish_ref(backend, "shell/git", "v1", first)
        assert read_ref(backend, "shell/git", "v1") == first
        assert read_ref(backend, "shell/git", "v2") is None
        publish_ref(backend, "shell/git", "v1", second)
        assert read_ref(backend, "shell/git", "v1") == second
        assert list(list_refs(backend)) == [("shell/git", "v1", second)]
        assert [info.key for info in backend.list("gc/")] == []

    @pytest.mark.parametrize("lost", [0, 1, 3])
    def test_an_image_that_is_not_whole_gets_no_name(self, backend, lost):
        """Without its manifest, its configuration or a layer an image is refused, and the name is as before."""
        before, broken = image(backend), image(backend, "two")
        publish_ref(backend, "git", "v1", before)
        blob = list(image_blobs(backend, broken))[lost]
        backend.delete(blob_key(blob.digest))
        with pytest.raises(ObjectNotFound):
            publish_ref(backend, "git", "v1", broken)
        assert read_ref(backend, "git", "v1") == before

    def test_the_images_of_an_index_are_looked_at(self, backend):
        """An index of platforms is published when each of its images is whole."""
        one, two = image(backend), image(backend, "two")
        index = put_blob(backend, ImageIndex(manifests=(one, two)).to_bytes(), media_type=INDEX)
        assert len(list(image_blobs(backend, index))) == 9
        publish_ref(backend, "git", "v1", index)
        (layer, *_) = reversed(list(image_blobs(backend, two)))
        backend.delete(blob_key(layer.digest))
        with pytest.raises(ObjectNotFound, match=str(layer.digest)):
            publish_ref(backend, "git", "v2", index)

    def test_a_damaged_name_is_written_again(self, backend):
        """What is under the key of a name but names nothing does not keep the name from being used."""
        manifest = image(backend)
        backend.replace(ref_key("git", "v1"), b"not JSON")
        with pytest.raises(InvalidDocument):
            read_ref(backend, "git", "v1")
        publish_ref(backend, "git", "v1", manifest)
        assert read_ref(backend, "git", "v1") == manifest

    def test_the_second_time_nothing_is_written(self, local):
        """Publishing what is published already writes nothing, so it may be done for each pull."""
        manifest = image(local)
        publish_ref(local, "git", "v1", manifest)
        before = {info.key: info.modified for info in local.list("")}
        time.sleep(0.02)
        publish_ref(local, "git", "v1", manifest)
        assert {info.key: info.modified for info in local.list("")} == before


class TestTags:
    def test_tags_are_in_lexical_order(self, backend):
        """All tags of one name and no others, sorted; names that begin alike are other names."""
        manifest = image(backend)
        for name, tag in [("git", "v2"), ("git", "latest"), ("git", "v10"), ("git/x", "a"), ("gitx", "b"), ("a", "c")]:
            publish_ref(backend, name, tag, manifest)
        assert list(list_tags(backend, "git")) == ["latest", "v10", "v2"]
        assert list(list_tags(backend, "git/x")) == ["a"]
        assert list(list_tags(backend, "nothing")) == []
        assert len(list(list_names(backend))) == 6

    def test_other_objects_are_no_tags(self, backend):
        """What lies among the refs and is none is passed over."""
        manifest = image(backend)
        publish_ref(backend, "git", "v1", manifest)
        backend.replace("refs/git/_tags/deep/er", b"{}")
        backend.replace("refs/readme", b"{}")
        assert list(list_tags(backend, "git")) == ["v1"]
        assert list(list_refs(backend)) == [("git", "v1", manifest)]

    def test_a_malformed_name_is_refused(self, backend):
        """No name leads out of the refs."""
        with pytest.raises(InvalidKey):
            list(list_tags(backend, "../../etc"))

    def test_a_tag_is_deleted(self, backend):
        """A deleted tag is gone from tags and index; the blobs and the other tags stay."""
        manifest = image(backend)
        publish_ref(backend, "git", "v1", manifest)
        publish_ref(backend, "git", "v2", manifest)
        assert delete_ref(backend, "git", "v1") is True
        assert delete_ref(backend, "git", "v1") is False
        assert list(list_tags(backend, "git")) == ["v2"]
        write_index(backend)
        assert list(indexed(backend)) == ["git:v2"]
        assert all(backend.stat(blob_key(blob.digest)) for blob in image_blobs(backend, manifest))


class TestIndex:
    def test_a_directory_follows_each_change(self, local):
        """Tools that read a directory in its place see each name as soon as it is published."""
        first, second = image(local), image(local, "two")
        publish_ref(local, "git", "v1", first)
        publish_ref(local, "bash", "v1", first)
        assert indexed(local) == {"bash:v1": first.digest, "git:v1": first.digest}
        publish_ref(local, "git", "v1", second)
        assert indexed(local) == {"bash:v1": first.digest, "git:v1": second.digest}
        delete_ref(local, "bash", "v1")
        assert indexed(local) == {"git:v1": second.digest}

    def test_each_way_to_write_it_gives_the_same_bytes(self, local):
        """The index that grew name by name is the index that is made of all refs at once."""
        manifest = image(local)
        for name, tag in [("git", "v1"), ("a/b", "v1"), ("a-b", "v1"), ("a", "z"), ("git", "latest")]:
            publish_ref(local, name, tag, manifest)
        grown = local.get(INDEX_KEY)
        assert write_index(local) == 5
        assert local.get(INDEX_KEY) == grown == read_names(local).to_bytes()

    @pytest.mark.parametrize("damage", [None, b"", b"[]", b'{"manifests":[{}]}', b'{"manifests":7}'])
    def test_a_lost_or_damaged_index_is_made_of_the_refs(self, local, damage):
        """The refs are what counts: the next name brings the index back with all others, also if nothing changed."""
        manifest = image(local)
        publish_ref(local, "git", "v1", manifest)
        publish_ref(local, "git", "v2", manifest)
        for name, tag in [("git", "v1"), ("git", "v3")]:
            if damage is None:
                local.delete(INDEX_KEY)
            else:
                local.replace(INDEX_KEY, damage)
            publish_ref(local, name, tag, manifest)
            assert {"git:v1", "git:v2"} <= indexed(local).keys()

    def test_elsewhere_it_is_written_when_asked_for(self):
        """In other storages an index is there from the first name on, valid, and gets the names by write_index."""
        backend = open_backend("memory://index-on-demand")
        manifest = image(backend)
        publish_ref(backend, "git", "v1", manifest)
        assert indexed(backend) == {}
        assert backend.get("oci-layout")
        assert write_index(backend) == 1
        publish_ref(backend, "git", "v2", manifest)
        assert indexed(backend) == {"git:v1": manifest.digest}
        assert write_index(backend) == 2
        assert indexed(backend) == {"git:v1": manifest.digest, "git:v2": manifest.digest}

    def test_writers_at_once_lose_no_name(self, local):
        """Eight threads publish and delete; the index has exactly the names that are left."""
        manifest = image(local)

        def work(number):
            for step in range(6):
                publish_ref(local, f"image{number}", f"v{step}", manifest)
            delete_ref(local, f"image{number}", "v3")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert indexed(local).keys() == {f"image{n}:v{s}" for n in range(8) for s in range(6) if s != 3}


class TestVerified:
    class Counting:
        """Streams given pieces under any key."""

        def __init__(self, pieces):
            self.pieces = pieces

        def stream(self, key, start=0, end=None):
            return iter(self.pieces)

    def test_right_bytes_come_through(self, backend):
        """A blob that is what its digest says is given whole, by descriptor and by digest, also an empty one."""
        for data in (b"", b"x", b"some more"):
            blob = put_blob(backend, data, media_type="text/plain")
            assert b"".join(verified(backend, blob)) == data
            assert b"".join(verified(backend, blob.digest)) == data

    @pytest.mark.parametrize("pieces", [[b"ab", b"cX"], [b"Xb", b"cd"], [b"ab", b"c"], [b"abcX"], [b""], []])
    def test_a_wrong_blob_is_never_given_whole(self, pieces):
        """Whatever is wrong with a blob, its consumer gets an error and fewer bytes than it was promised."""
        given = []
        with pytest.raises(DigestMismatch) as raised:
            given.extend(verified(self.Counting(pieces), Descriptor.of("text/plain", b"abcd")))
        assert len(b"".join(given)) < 4
        assert raised.value.key
        assert "fsck" in raised.value.hint

    def test_too_many_bytes_end_it(self):
        """A stream without an end is left at the first piece too many."""
        endless = iter(lambda: b"x" * 3, None)
        with pytest.raises(DigestMismatch, match="more than its 4 bytes"):
            list(verified(self.Counting(endless), Descriptor.of("text/plain", b"xxxx")))

    def test_a_missing_blob_is_told_at_once(self, backend):
        """Before the first piece: a server still can answer 404."""
        with pytest.raises(ObjectNotFound):
            verified(backend, Descriptor.of("text/plain", b"nothing"))


@pytest.mark.parametrize(
    ("key", "known"),
    [
        (blob_key(Descriptor.of("", b"").digest), True),
        ("blobs/sha256/e3b0", False),
        ("blobs/md5/" + 32 * "0", False),
        ("blobs/readme", False),
        ("refs/sha256/" + 64 * "0", False),
        ("blobs/sha256/" + 64 * "A", False),
    ],
)
def test_keys_of_blobs(key, known):
    """The key of a blob gives back its digest, and no other key gives any."""
    digest = parse_blob_key(key)
    assert (digest is not None) is known
    assert digest is None or blob_key(digest) == key


def test_a_directory_knows_that_it_is_one(local):
    """The index follows changes where open_backend gives a LocalBackend."""
    assert isinstance(local, LocalBackend)

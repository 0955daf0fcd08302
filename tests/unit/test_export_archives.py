"""Exported images: members, names, bytes, and what happens when the storage is damaged."""

import io
import itertools
import json
import tarfile

import attrs
import pytest

from nixery_core.archive import ArchiveEntry, write_archive
from nixery_core.compression import codec
from nixery_core.errors import (
    DigestMismatch,
    InvalidConfig,
    InvalidDocument,
    InvalidName,
    InvalidTag,
    ObjectNotFound,
    StorageError,
)
from nixery_core.export import FORMATS, export_image, write_docker_archive, write_oci_archive
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, REF_NAME, Descriptor, ImageConfig, Manifest, RootFS
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import blob_key
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.reader import EntryType


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "store")


def layer_tar(name, size=0):
    """Return the archive of a layer with one file."""
    pieces = []
    entry = ArchiveEntry(
        name=name.encode(), type=EntryType.REGULAR, mode=0o644, size=size, contents=lambda: iter((bytes(size),))
    )
    write_archive([entry], pieces.append)
    return b"".join(pieces)


class StoredImage:
    """An image in *backend* with one layer for each archive."""

    def __init__(self, backend, archives, codec_name="gzip"):
        self.codec = codec(codec_name)
        self.archives = archives
        self.layers = [
            put_blob(backend, self.codec.compress(archive), media_type=self.codec.media_type) for archive in archives
        ]
        self.diff_ids = tuple(Digest.of(archive) for archive in archives)
        config = ImageConfig(architecture="amd64", os="linux", rootfs=RootFS(self.diff_ids))
        self.config = put_blob(backend, config.to_bytes(), media_type=config.MEDIA_TYPE)
        self.document = Manifest(config=self.config, layers=tuple(self.layers))
        self.manifest = put_blob(backend, self.document.to_bytes(), media_type=self.document.MEDIA_TYPE)


def members(data):
    """Return the members of an archive with their content, in order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: archive.extractfile(info).read() if info.isreg() else None for info in archive}


def exported(image, backend, archive_format, **options):
    pieces = []
    options = {"reference": "shell/git:v1", **options}
    export_image(image.manifest, backend, format=archive_format, write=pieces.append, **options)
    return b"".join(pieces)


def damage(backend, blob, change):
    """Change the bytes of a stored blob behind the backend's back."""
    path = backend.root / blob_key(blob.digest)
    path.write_bytes(change(path.read_bytes()))


class TestOciArchive:
    def test_it_is_an_image_layout_with_every_blob_once(self, backend):
        """The archive holds the layout's two files and the blobs of the image, layers as they are stored."""
        layer = layer_tar("a")
        image = StoredImage(backend, [layer, layer_tar("b"), layer])
        found = members(exported(image, backend, "oci-archive"))

        assert json.loads(found.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
        (named,) = json.loads(found.pop("index.json"))["manifests"]
        assert named["digest"] == str(image.manifest.digest)
        assert named["annotations"] == {REF_NAME: "shell/git:v1"}
        assert (found.pop("blobs"), found.pop("blobs/sha256")) == (None, None)
        blobs = {blob_key(blob.digest) for blob in (image.manifest, image.config, *image.layers)}
        assert set(found) == blobs
        assert all(name.endswith(Digest.of(data).hex) for name, data in found.items())

    @pytest.mark.parametrize("reference", ["", "a\nb"])
    def test_a_reference_that_is_no_name_is_refused(self, backend, reference):
        """What cannot be printed cannot be asked for."""
        with pytest.raises(InvalidName):
            exported(StoredImage(backend, [layer_tar("a")]), backend, "oci-archive", reference=reference)


class TestDockerArchive:
    @pytest.mark.parametrize("codec_name", ["gzip", "zstd", "none"])
    def test_layers_are_unpacked_and_listed_in_order(self, backend, codec_name):
        """A loading Docker finds plain archives whose digests are the diff_ids; the same layer is there once."""
        first, second = layer_tar("a", 3 << 20), layer_tar("b")
        image = StoredImage(backend, [first, second, first], codec_name)
        found = members(exported(image, backend, "docker-archive"))

        (loaded,) = json.loads(found.pop("manifest.json"))
        assert loaded["RepoTags"] == ["shell/git:v1"]
        assert [Digest.of(found[name]) for name in loaded["Layers"]] == list(image.diff_ids)
        assert Digest.of(found[loaded["Config"]]) == image.config.digest
        assert set(found) == {*loaded["Layers"], loaded["Config"]}

    def test_the_bytes_do_not_depend_on_the_compression(self, backend):
        """An image that is stored in another compression is the same Docker image."""
        archives = [layer_tar("a"), layer_tar("b")]
        images = [
            exported(StoredImage(backend, archives, name), backend, "docker-archive") for name in ("gzip", "zstd")
        ]

        assert images[0] == images[1]

    def test_known_sizes_save_a_pass_over_the_layer(self, backend):
        """Each layer is read once when its size is known, twice when not; the bytes are the same."""
        image = StoredImage(backend, [layer_tar("a"), layer_tar("b")])
        counting = CountingBackend(backend)
        sizes = {diff_id: len(archive) for diff_id, archive in zip(image.diff_ids, image.archives, strict=True)}

        known = exported(image, counting, "docker-archive", sizes=sizes)
        assert sorted(counting.streamed) == sorted(blob_key(layer.digest) for layer in image.layers)
        assert exported(image, counting, "docker-archive") == known
        assert len(counting.streamed) == 6

    def test_a_wrong_size_is_an_error(self, backend):
        """A member never has another length than its header says."""
        image = StoredImage(backend, [layer_tar("a")])

        with pytest.raises(DigestMismatch, match="more than the 10 bytes that were announced"):
            exported(image, backend, "docker-archive", sizes={image.diff_ids[0]: 10})

    @pytest.mark.parametrize(
        ("reference", "tag"),
        [
            ("hello", "hello:latest"),
            ("shell/git:v1.0", "shell/git:v1.0"),
            ("localhost:5000/hello", "localhost:5000/hello:latest"),
            ("registry.example.org/a/b:c", "registry.example.org/a/b:c"),
        ],
    )
    def test_a_reference_without_a_tag_gets_latest(self, backend, reference, tag):
        """Docker's own rule."""
        found = members(
            exported(StoredImage(backend, [layer_tar("a")]), backend, "docker-archive", reference=reference)
        )

        assert json.loads(found["manifest.json"])[0]["RepoTags"] == [tag]

    @pytest.mark.parametrize(
        ("reference", "error"),
        [
            ("Hello", InvalidName),
            ("", InvalidName),
            ("a:b c", InvalidTag),
            ("a:", InvalidTag),
            ("/a", InvalidName),
            ("a b.c/d", InvalidName),
            ("[::1]:5000/a\n", InvalidName),
            ("-.x/a", InvalidName),
        ],
    )
    def test_a_reference_that_docker_refuses_is_refused(self, backend, reference, error):
        """The error comes now, not when somebody loads the file."""
        with pytest.raises(error):
            exported(StoredImage(backend, [layer_tar("a")]), backend, "docker-archive", reference=reference)


@pytest.mark.parametrize("archive_format", FORMATS)
class TestBoth:
    def test_bytes_depend_on_the_image_alone(self, backend, archive_format):
        """Equal images and names give equal files, with no time and no owner of this machine in them."""
        image = StoredImage(backend, [layer_tar("a"), layer_tar("b")])
        first, second = (exported(image, backend, archive_format) for _ in range(2))

        assert first == second
        with tarfile.open(fileobj=io.BytesIO(first)) as archive:
            infos = archive.getmembers()
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in infos} == {(1, 0, 0, "")}
        assert [info.name.split("/") for info in infos] == sorted(info.name.split("/") for info in infos)

    @pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
    def test_a_layer_of_another_size_is_an_error(self, backend, archive_format, change):
        """An archive is never silently short."""
        image = StoredImage(backend, [layer_tar("a")], "none")
        damage(backend, image.layers[0], change)

        with pytest.raises(DigestMismatch) as caught:
            exported(image, backend, archive_format)
        assert caught.value.key == blob_key(image.layers[0].digest)

    def test_a_layer_with_other_bytes_is_an_error(self, backend, archive_format):
        """A flipped bit is found although the size is right."""
        image = StoredImage(backend, [layer_tar("a")], "none")
        damage(backend, image.layers[0], lambda data: data[:-1] + b"\1")

        with pytest.raises(DigestMismatch):
            exported(image, backend, archive_format)

    def test_a_damaged_compressed_layer_is_an_error_that_names_the_blob(self, backend, archive_format):
        """Whoever finds the damage first, codec or digest, the blob is named."""
        image = StoredImage(backend, [layer_tar("a")])
        damage(backend, image.layers[0], lambda data: data[:30] + b"\xff\xff\xff" + data[33:])

        with pytest.raises(StorageError) as caught:
            exported(image, backend, archive_format)
        assert caught.value.key == blob_key(image.layers[0].digest)

    def test_a_missing_layer_is_an_error(self, backend, archive_format):
        """What is gone from the storage is named."""
        image = StoredImage(backend, [layer_tar("a")])
        backend.delete(blob_key(image.layers[0].digest))

        with pytest.raises(ObjectNotFound):
            exported(image, backend, archive_format)

    def test_an_index_is_refused(self, backend, archive_format):
        """Both formats hold the image of one platform."""
        image = StoredImage(backend, [layer_tar("a")])
        image.manifest = attrs.evolve(image.manifest, media_type=INDEX)

        with pytest.raises(InvalidDocument, match="no image manifest"):
            exported(image, backend, archive_format)

    def test_a_manifest_that_does_not_fit_its_configuration_is_refused(self, backend, archive_format):
        """Layers and diff_ids come in pairs."""
        image = StoredImage(backend, [layer_tar("a")])
        document = attrs.evolve(image.document, layers=(*image.layers, *image.layers))
        image.manifest = put_blob(backend, document.to_bytes(), media_type=document.MEDIA_TYPE)

        with pytest.raises(InvalidDocument, match="2 layers"):
            exported(image, backend, archive_format)

    def test_memory_does_not_grow_with_the_image(self, backend, archive_format):
        """The archive comes in bounded pieces, however large a layer is."""
        image = StoredImage(backend, [layer_tar("a", 20 << 20)], "none")
        sizes = []
        export_image(
            image.manifest,
            backend,
            format=archive_format,
            reference="a:b",
            write=lambda data: sizes.append(len(data)),
        )

        assert sum(sizes) > 20 << 20
        assert max(sizes) <= 4 << 20


def test_formats_have_known_names(backend):
    """A typing error is answered with the nearest name."""
    image = StoredImage(backend, [layer_tar("a")])
    with pytest.raises(InvalidConfig, match="did you mean docker-archive"):
        exported(image, backend, "dockerarchive")


def test_both_functions_are_what_the_formats_stand_for(backend):
    """Names for users, functions for programs."""
    image = StoredImage(backend, [layer_tar("a")])
    for archive_format, function in zip(FORMATS, (write_docker_archive, write_oci_archive), strict=True):
        pieces = []
        function(image.manifest, backend, reference="shell/git:v1", write=pieces.append)
        assert b"".join(pieces) == exported(image, backend, archive_format)


class CountingBackend:
    """The same storage, counting what is streamed from it."""

    def __init__(self, backend):
        self._backend = backend
        self.streamed = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def stream(self, key, start=0, end=None):
        self.streamed.append(key)
        return itertools.chain(self._backend.stream(key, start, end))


def test_a_descriptor_with_a_wrong_size_is_found(backend):
    """The manifest is checked like every other blob."""
    image = StoredImage(backend, [layer_tar("a")])
    image.manifest = Descriptor(image.manifest.media_type, image.manifest.digest, image.manifest.size + 1)
    with pytest.raises(DigestMismatch):
        exported(image, backend, "oci-archive")

"""What a client that has one image pulls for another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_core.builder import ImageBuilder
from nixery_core.cli import main
from nixery_core.comparison import compare_images
from nixery_core.errors import InvalidDocument
from nixery_core.image import Image
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import INDEX, ImageIndex
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

PACKAGES = {
    name: MemoryPackage(path=StorePath(letter * 32, f"{name}-1"), tree={"share": {name: name.encode() * 1000}})
    for letter, name in zip("abc", ("git", "curl", "htop"), strict=True)
}


class Source:
    """A source that is pinned."""

    def pin(self, tag: str) -> Pin:
        return Pin(kind="memory", url="memory", revision="r1", fetch={})


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], Image]:
    """A function that builds an image into the storage ``images``."""
    builder = ImageBuilder(Source(), open_backend(tmp_path / "images"), realiser=MemoryRealiser(PACKAGES))
    return lambda name: builder.build(ImageSpec.parse(name, implied=()))


class TestCompare:
    def test_common_layers_are_shared(self, tmp_path: Path, build: Callable[[str], Image]) -> None:
        """Only layers that the first image does not have are pulled, and the documents."""
        first, second = build("git/curl"), build("git/htop")
        result = compare_images(open_backend(tmp_path / "images"), first.descriptor, second.descriptor)
        states = {layer.holds: layer.shared for layer in result.layers}
        assert states == {"git-1": True, "htop-1": False, "symbolic links and system files": False}
        assert {layer.holds for layer in result.dropped} == {"curl-1", "symbolic links and system files"}
        assert result.pulled + result.shared == second.size
        assert result.pulled == sum(layer.descriptor.size for layer in second.layers if layer not in first.layers)
        assert result.documents == second.descriptor.size + second.manifest.config.size

    def test_an_image_with_itself(self, tmp_path: Path, build: Callable[[str], Image]) -> None:
        """Whoever has an image pulls nothing for it."""
        image = build("git")
        result = compare_images(open_backend(tmp_path / "images"), image.descriptor, image.descriptor)
        assert (result.pulled, result.documents, result.dropped) == (0, 0, ())
        assert result.common_bottom == len(image.layers)

    def test_an_index_is_no_image(self, tmp_path: Path, build: Callable[[str], Image]) -> None:
        """Of an index a client takes one image, so one has to be named."""
        image = build("git")
        backend = open_backend(tmp_path / "images")
        index = put_blob(backend, ImageIndex(manifests=(image.descriptor,)).to_bytes(), media_type=INDEX)
        with pytest.raises(InvalidDocument, match=r"several platforms.*one platform"):
            compare_images(backend, image.descriptor, index)


class TestCommand:
    def test_the_table(self, tmp_path: Path, build: Callable[[str], Image], capsys: pytest.CaptureFixture[str]) -> None:
        """A person reads which layers are new, and how many bytes that is."""
        build("git/curl"), build("git/htop")
        assert main(["compare", "git/curl", "git/htop:latest", "--store", str(tmp_path / "images")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[1:4]].count("new") == 2
        assert lines[4].startswith("pulls 2 of 3 layers, ")

    def test_json_by_digest(
        self, tmp_path: Path, build: Callable[[str], Image], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A script gets digests and sizes, and may name images by digest."""
        first, second = build("git/curl"), build("git/htop")
        digests = [str(image.descriptor.digest) for image in (first, second)]
        assert main(["compare", *digests, "--store", str(tmp_path / "images"), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [document["first"], document["second"]] == digests
        assert [layer["digest"] for layer in document["layers"]] == [
            str(built.descriptor.digest) for built in second.layers
        ]
        assert document["pulled"] == sum(layer["size"] for layer in document["layers"] if not layer["shared"])

    def test_an_unknown_image(self, tmp_path: Path, build: Callable[[str], Image]) -> None:
        """A name that is not there is a storage error, as with inspect."""
        build("git")
        assert main(["compare", "git", "nonesuch", "--store", str(tmp_path / "images")]) == 7

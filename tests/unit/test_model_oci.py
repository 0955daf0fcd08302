"""OCI documents: the bytes we write, and how strictly we read."""

from __future__ import annotations

import json
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest

from nixery_core.errors import InvalidDocument
from nixery_core.model.digest import Digest
from nixery_core.model.oci import (
    LAYER_GZIP,
    MANIFEST,
    ContainerConfig,
    Descriptor,
    Document,
    ImageConfig,
    ImageIndex,
    Manifest,
    canonical_json,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DOCUMENTS: dict[str, Document] = runpy.run_path(str(GOLDEN / "regenerate.py"))["oci_documents"]()
DIGEST = str(Digest.of(b""))


def descriptor(**changes: object) -> dict[str, object]:
    return {"mediaType": LAYER_GZIP, "digest": DIGEST, "size": 5} | changes


def manifest(**changes: object) -> dict[str, object]:
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(), "layers": [descriptor()]}
    return value | changes


def config(**changes: object) -> dict[str, Any]:
    return {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}} | changes


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
class TestGolden:
    def test_bytes_are_the_golden_ones(self, name: str) -> None:
        """The bytes of a document do not change from release to release: digests depend on them."""
        assert DOCUMENTS[name].to_bytes() == (GOLDEN / f"oci-{name}.json").read_bytes()

    def test_bytes_are_read_back(self, name: str) -> None:
        """A document is equal to what is read from its bytes, and writes the same bytes again."""
        data = (GOLDEN / f"oci-{name}.json").read_bytes()
        document = type(DOCUMENTS[name]).from_bytes(data)
        assert document == DOCUMENTS[name]
        assert document.to_bytes() == data

    def test_pickles(self, name: str) -> None:
        """A document goes to another process and comes back equal."""
        assert pickle.loads(pickle.dumps(DOCUMENTS[name])) == DOCUMENTS[name]

    def test_no_field_is_empty(self, name: str) -> None:
        """What has no value is left out; Go programs write and read it that way."""

        def walk(value: object, where: str) -> None:
            if isinstance(value, dict):
                for key, item in value.items():
                    # the specification's own way to write a set is an object of empty objects
                    assert item not in (None, "", False) or key == "size", f"{where}.{key}"
                    walk(item, f"{where}.{key}")
            elif isinstance(value, list):
                for item in value:
                    walk(item, f"{where}[]")

        walk(json.loads(DOCUMENTS[name].to_bytes()), "$")


class TestCanonicalBytes:
    def test_order_of_keys_carries_no_meaning(self) -> None:
        """Equal values give equal bytes, whatever order they were written in."""
        assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == canonical_json({"a": {"c": 3, "d": 2}, "b": 1})
        assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
    def test_what_json_cannot_say_is_refused(self, value: object) -> None:
        """No value that another reader would refuse or misread gets into a document."""
        with pytest.raises((TypeError, ValueError)):
            canonical_json({"value": value})

    def test_layer_of_no_bytes_keeps_its_size(self) -> None:
        """A required number is written even if it is 0."""
        assert Descriptor.of("text/plain", b"").to_json()["size"] == 0

    def test_empty_layers_are_written(self) -> None:
        """A required list is written even if it is empty."""
        assert json.loads(Manifest(config=Descriptor.of("x", b""), layers=()).to_bytes())["layers"] == []
        assert json.loads(ImageIndex(manifests=()).to_bytes())["manifests"] == []


class TestSets:
    def test_order_of_ports_and_volumes_carries_no_meaning(self) -> None:
        """Ports and volumes are sets in the specification, so they are compared as sets."""
        one = ContainerConfig(exposed_ports=["80", "22"], volumes=["/b", "/a", "/b"])
        assert one == ContainerConfig(exposed_ports=("22", "80"), volumes=("/a", "/b"))


class TestReading:
    def test_unknown_fields_are_ignored(self) -> None:
        """A field of a later version of the specification does not make a document unreadable."""
        assert Manifest.from_json(manifest(newField={"x": 1})) == Manifest.from_json(manifest())

    @pytest.mark.parametrize("field", ["config", "history"])
    def test_null_is_an_empty_list_or_nothing(self, field: str) -> None:
        """Go writes an empty list as null."""
        value = config(config={"Env": None, "Labels": None, "Volumes": None, "Cmd": None}, history=None)
        if field == "history":
            del value["config"]
        assert ImageConfig.from_json(value) == ImageConfig.from_json(config())

    @pytest.mark.parametrize(
        ("cls", "value", "expected"),
        [
            (Descriptor, descriptor(size="5"), "expected int, got str"),
            (Descriptor, descriptor(size=True), "expected int, got bool"),
            (Descriptor, descriptor(size=5.0), "expected int, got float"),
            (Descriptor, descriptor(size=None), "expected int, got NoneType"),
            (Descriptor, descriptor(size=-1), "size"),
            (Descriptor, descriptor(digest=5), "expected a digest, got int"),
            (Descriptor, descriptor(digest="sha256:00"), "is not a digest"),
            (Descriptor, descriptor(mediaType=None), "expected str, got NoneType"),
            (Descriptor, descriptor(annotations={"a": 1}), "expected texts, got 'a': 1"),
            (Descriptor, descriptor(annotations=["a"]), "expected an object, got list"),
            (Descriptor, descriptor(platform={"os": "linux"}), "architecture"),
            (Descriptor, {"digest": DIGEST, "size": 1}, "mediaType"),
            (Descriptor, [], "expected an object, got list"),
            (Descriptor, None, "expected an object, got NoneType"),
            (Manifest, manifest(schemaVersion=1), "schema_version"),
            (Manifest, manifest(schemaVersion="2"), "expected int, got str"),
            (Manifest, manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json"), "media_type"),
            (Manifest, manifest(layers={}), "expected a list, got dict"),
            (Manifest, manifest(layers="ab"), "expected a list, got str"),
            (Manifest, manifest(layers=[descriptor(), 5]), "expected an object, got int"),
            (Manifest, manifest(config=None), "config"),
            (ImageConfig, config(rootfs={"type": "other", "diff_ids": []}), "type"),
            (ImageConfig, config(rootfs=None), "rootfs"),
            (ImageConfig, config(os=5), "expected str, got int"),
            (ImageConfig, config(config={"ExposedPorts": ["80"]}), "expected an object, got list"),
            (ImageConfig, config(config={"Env": [1]}), "expected str, got int"),
            (ImageConfig, config(history=[{"empty_layer": 1}]), "expected bool, got int"),
        ],
    )
    def test_nothing_is_coerced(self, cls: type[Document], value: object, expected: str) -> None:
        """A value of another type is refused with its field, never turned into the type that was hoped for."""
        with pytest.raises(InvalidDocument) as caught:
            cls.from_json(value)
        assert cls.__name__ in caught.value.message
        assert expected in caught.value.message

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"nonsense", b"[" * 100_000, b'{"size": NaN}'])
    def test_what_is_not_json_is_refused(self, data: bytes) -> None:
        """Bytes that are not a document raise InvalidDocument, and nothing else."""
        with pytest.raises(InvalidDocument):
            Descriptor.from_bytes(data)

    def test_every_wrong_field_is_named(self) -> None:
        """All that is wrong with a document is told at once."""
        with pytest.raises(InvalidDocument) as caught:
            Descriptor.from_json({"mediaType": 1, "digest": 2, "size": "3"})
        assert all(field in caught.value.message for field in ("media_type", "digest", "size"))

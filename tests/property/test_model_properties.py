"""Properties of the model: what is written is read back, and nothing but its own errors comes out of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.errors import InvalidClosure, InvalidDigest, InvalidDocument, InvalidPlatform, InvalidStorePath
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.oci import (
    ContainerConfig,
    Descriptor,
    History,
    ImageConfig,
    ImageIndex,
    ImagePlatform,
    Manifest,
    RootFS,
    canonical_json,
)
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.testing.strategies import closures, store_paths

pytestmark = pytest.mark.property

digests = st.binary(max_size=20).map(Digest.of)
texts = st.text(max_size=8)
labels = st.dictionaries(texts, texts, max_size=3)
descriptors = st.builds(
    Descriptor,
    texts,
    digests,
    st.integers(0, 1 << 60),
    annotations=labels,
    platform=st.none() | st.builds(ImagePlatform, texts, texts, st.none() | texts.filter(bool)),
)
manifests = st.builds(
    Manifest,
    config=descriptors,
    layers=st.lists(descriptors, max_size=3).map(tuple),
    annotations=labels,
    subject=st.none() | descriptors,
)
indexes = st.builds(ImageIndex, manifests=st.lists(descriptors, max_size=3).map(tuple), annotations=labels)
words = st.lists(texts, max_size=3).map(tuple)
configs = st.builds(
    ImageConfig,
    architecture=texts,
    os=texts,
    config=st.builds(
        ContainerConfig,
        user=texts,
        exposed_ports=words,
        env=words,
        entrypoint=words,
        cmd=words,
        volumes=words,
        working_dir=texts,
        labels=labels,
        stop_signal=texts,
    ),
    rootfs=st.builds(RootFS, st.lists(digests, max_size=3).map(tuple)),
    history=st.lists(
        st.builds(History, comment=st.none() | texts.filter(bool), empty_layer=st.booleans()), max_size=3
    ).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=10,
)


@given(digests)
def test_digest_is_read_back_from_every_form(digest: Digest) -> None:
    """parse(str(x)) == x, and the same for Nix's base 32."""
    assert Digest.parse(str(digest)) == digest
    assert Digest.parse_nix(digest.to_nix()) == digest


@given(st.text(max_size=80))
def test_text_is_a_digest_or_an_invalid_digest(text: str) -> None:
    """No text makes a digest that is written otherwise, and none raises anything but InvalidDigest."""
    for prefix in ("", "sha256:", "sha256-"):
        try:
            digest = Digest.parse(prefix + text)
        except InvalidDigest:
            pass
        else:
            assert str(digest) == prefix + text
        with contextlib.suppress(InvalidDigest):
            Digest.parse_nix(prefix + text)


@given(st.lists(store_paths(), max_size=5))
def test_store_path_is_read_back_in_order(paths: list[StorePath]) -> None:
    """parse(str(x)) == x, and paths sort as their texts do."""
    assert [StorePath.parse(str(path)) for path in paths] == paths
    assert [StorePath.parse(path.base) for path in paths] == paths
    assert [str(path) for path in sorted(paths)] == sorted(map(str, paths))


@given(st.text(max_size=60))
def test_text_is_a_store_path_or_an_invalid_one(text: str) -> None:
    """No text makes a store path that is written otherwise, and none raises anything but InvalidStorePath."""
    try:
        path = StorePath.parse(text)
    except InvalidStorePath:
        return
    assert text in (str(path), path.base)


@given(st.text("linuxarm64/v78_-amd3", max_size=14))
def test_text_is_a_platform_or_an_invalid_one(text: str) -> None:
    """A text is a platform of the table or raises InvalidPlatform."""
    try:
        platform = Platform.parse(text)
    except InvalidPlatform:
        return
    assert Platform.parse(str(platform)) == platform == Platform.parse(platform.system)


def path_info(closure: Closure) -> list[dict[str, Any]]:
    """Return what Nix 2.8 would print of a closure."""
    return [
        {
            "path": str(info.path),
            "narSize": info.nar_size,
            "references": [str(reference) for reference in info.references],
            **({} if info.nar_hash is None else {"narHash": info.nar_hash.to_nix()}),
        }
        for info in closure
    ]


@given(closures(), st.randoms())
def test_closure_is_read_back_from_every_form(closure: Closure, random: Any) -> None:
    """A closure does not depend on the form or the order in which it was told."""
    rows, roots = path_info(closure), [str(root) for root in closure.roots]
    random.shuffle(rows)
    random.shuffle(roots)
    by_path = {row["path"]: {key: value for key, value in row.items() if key != "path"} for row in rows}
    assert Closure.from_path_info(rows, roots) == closure
    assert Closure.from_path_info(by_path, roots) == closure
    graph = {"graph": rows, "exportReferencesGraph": {"graph": roots}}
    assert Closure.from_reference_graph(graph) == closure


@given(closures())
def test_topological_order_is_an_order_of_all_paths(closure: Closure) -> None:
    """Every path stands once, after all that it refers to, and equal closures have equal orders."""
    order = closure.topological()
    assert sorted(order) == [info.path for info in closure]
    place = {path: number for number, path in enumerate(order)}
    for info in closure:
        assert all(place[reference] < place[info.path] for reference in info.references if reference != info.path)
    assert Closure(closure.paths[::-1], closure.roots).topological() == order


@given(json_values)
def test_any_json_is_a_closure_or_an_invalid_one(value: object) -> None:
    """No JSON value raises anything but InvalidClosure."""
    for document in (value, [value], {"graph": value, "exportReferencesGraph": {"graph": value}}):
        for read in (lambda document: Closure.from_path_info(document, []), Closure.from_reference_graph):
            with contextlib.suppress(InvalidClosure):
                read(document)


@given(st.one_of(descriptors, manifests, indexes, configs))
def test_document_is_read_back(document: Descriptor | Manifest | ImageIndex | ImageConfig) -> None:
    """from_bytes(to_bytes(x)) == x, and the bytes are canonical."""
    data = document.to_bytes()
    assert type(document).from_bytes(data) == document
    assert canonical_json(json.loads(data)) == data


@given(json_values)
def test_any_json_is_a_document_or_an_invalid_one(value: object) -> None:
    """No JSON value raises anything but InvalidDocument, wherever it stands in a document."""
    for cls in (Descriptor, Manifest, ImageIndex, ImageConfig):
        whole = {"mediaType": Manifest.MEDIA_TYPE, "schemaVersion": 2, "architecture": "a", "os": "b", "size": 1}
        fields = ("config", "layers", "manifests", "rootfs", "digest", "annotations", "platform", "history")
        for document in (value, {**whole, **dict.fromkeys(fields, value)}):
            with contextlib.suppress(InvalidDocument):
                cls.from_json(document)

"""What the registry remembers: bounds, ends, and what is forgotten."""

import pytest

from nixery_core.errors import InvalidDocument
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, LAYER_GZIP, LAYER_ZSTD, MANIFEST, Descriptor, ImageIndex, Manifest
from nixery_core.server.accept import choose
from nixery_core.server.documents import DOCKER_MANIFEST, docker_manifest, served_manifest
from nixery_core.server.memory import ManifestMemory


def manifest(number, layer_type=LAYER_GZIP):
    config = Descriptor.of("application/vnd.oci.image.config.v1+json", b"%d" % number)
    return served_manifest(
        Manifest(config=config, layers=(Descriptor.of(layer_type, b"layer %d" % number),)).to_bytes()
    )


def index_of(*children):
    return served_manifest(
        ImageIndex(
            manifests=tuple(Descriptor(MANIFEST, Digest.parse(child.digest), len(child.body)) for child in children)
        ).to_bytes()
    )


class TestManifestMemory:
    def test_a_tag_ends(self):
        """After its ttl a tag is asked for anew; the manifest is still known by its digest."""
        now = [0.0]
        memory = ManifestMemory(tag_ttl=5, clock=lambda: now[0])
        one = manifest(1)
        memory.keep_tag("git", "latest", one)
        now[0] = 4.9
        assert memory.of_tag("git", "latest") is one
        now[0] = 5.0
        assert memory.of_tag("git", "latest") is None
        assert memory.of_digest(one.digest) is one

    def test_no_ttl_remembers_no_tag(self):
        """With 0 every request for a tag is looked up."""
        memory = ManifestMemory(tag_ttl=0)
        memory.keep_tag("git", "latest", manifest(1))
        assert memory.of_tag("git", "latest") is None

    def test_bytes_have_a_bound(self):
        """What was not asked for longest goes first, and takes its tags along."""
        one, two, three = manifest(1), manifest(2), manifest(3)
        memory = ManifestMemory(tag_ttl=5, max_bytes=2 * len(one.body))
        memory.keep_tag("one", "latest", one)
        memory.keep_tag("two", "latest", two)
        memory.of_digest(one.digest)
        memory.keep(three)
        assert memory.of_digest(two.digest) is None
        assert memory.of_tag("two", "latest") is None
        assert memory.of_tag("one", "latest") is one

    def test_tags_have_a_bound(self):
        """However many names are asked for."""
        memory = ManifestMemory(tag_ttl=5, max_tags=10)
        for number in range(100):
            memory.keep_tag(f"name{number}", "latest", manifest(1))
        assert sum(memory.of_tag(f"name{number}", "latest") is not None for number in range(100)) == 10

    def test_a_blob_that_is_gone_takes_its_manifests_along(self):
        """Manifests that name it, and indexes that name those; nothing else."""
        one, two = manifest(1), manifest(2)
        both, other = index_of(one, two), index_of(two)
        memory = ManifestMemory(tag_ttl=5)
        for name, document in (("one", one), ("two", two), ("both", both), ("other", other)):
            memory.keep_tag(name, "latest", document)
        memory.forget_blob(next(iter(one.blobs)))
        known = {name for name in ("one", "two", "both", "other") if memory.of_tag(name, "latest")}
        assert known == {"two", "other"}
        memory.forget_blob(str(Digest.of(b"never seen")))


class TestDocuments:
    def test_docker_has_no_word_for_zstd(self):
        """A manifest with a layer of Zstandard has no Docker form."""
        assert docker_manifest(manifest(1, LAYER_ZSTD).body) is None
        converted = served_manifest(docker_manifest(manifest(1).body))
        assert converted.media_type == DOCKER_MANIFEST
        assert converted.blobs == manifest(1).blobs

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"mediaType":"text/plain"}', b"[" * 100_000, b"\xff"])
    def test_other_bytes_are_no_manifest(self, body):
        """A layer that is asked for as a manifest is refused."""
        with pytest.raises(InvalidDocument):
            served_manifest(body)


class TestAccept:
    @pytest.mark.parametrize(
        ("lines", "chosen"),
        [
            ([], MANIFEST),
            ([b""], MANIFEST),
            ([b"*/*"], MANIFEST),
            ([b"application/*"], MANIFEST),
            ([b"application/json"], MANIFEST),
            ([DOCKER_MANIFEST.encode()], DOCKER_MANIFEST),
            ([DOCKER_MANIFEST.encode(), MANIFEST.encode()], MANIFEST),
            ([f"{DOCKER_MANIFEST}, {MANIFEST};q=0.1".encode()], MANIFEST),
            ([f"*/*, {MANIFEST};q=0".encode()], DOCKER_MANIFEST),
            ([f"{MANIFEST};q=nonsense".encode()], MANIFEST),
            ([b"text/html"], None),
            ([INDEX.encode()], None),
            ([b"APPLICATION/VND.OCI.IMAGE.MANIFEST.V1+JSON"], MANIFEST),
        ],
    )
    def test_what_clients_send(self, lines, chosen):
        """One line for each type, one line for all, wildcards, qualities, nonsense, nothing."""
        assert choose(tuple(lines), (MANIFEST, DOCKER_MANIFEST)) == chosen

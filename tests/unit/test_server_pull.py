"""The pull side of the registry, section by section of the distribution specification ("Pull")."""

import json

import pytest

from nixery_core.model.digest import Digest
from nixery_core.model.oci import CONFIG, MANIFEST
from nixery_core.server import registry_app
from nixery_core.server.documents import DOCKER_MANIFEST
from nixery_core.storage.keys import blob_key
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path / "images")


@pytest.fixture
def client(backend):
    with AsgiClient(registry_app(memory_builder(backend, "git", "htop"))) as client:
        yield client


def layer_of(client, name="git"):
    return client.get(f"/v2/{name}/manifests/latest").json()["layers"][0]


class TestDeterminingSupport:
    @pytest.mark.parametrize("path", ["/v2/", "/v2"])
    def test_the_base_says_that_the_api_is_there(self, client, path):
        """`/v2/` answers 200, with and without the slash, to GET and HEAD (end-1)."""
        assert client.get(path).status == client.head(path).status == 200
        assert client.get(path).json() == {}


class TestPullingManifests:
    def test_a_tag_gives_the_manifest(self, client):
        """200, the type of the document, its digest; no parameters on the type."""
        response = client.get("/v2/git/manifests/latest")
        assert response.status == 200
        assert response.headers["content-type"] == MANIFEST == response.json()["mediaType"]
        assert response.headers["docker-content-digest"] == str(Digest.of(response.body))
        assert response.headers["content-length"] == str(len(response.body))

    def test_the_digest_gives_the_same_bytes(self, client):
        """What a tag stands for can be had by its digest, also before anything else is asked for."""
        by_tag = client.get("/v2/git/manifests/latest")
        by_digest = client.get(f"/v2/git/manifests/{by_tag.headers['docker-content-digest']}")
        assert by_digest.status == 200
        assert by_digest.body == by_tag.body
        assert by_digest.headers == by_tag.headers

    def test_head_builds_and_promises_what_get_gives(self, client, backend):
        """Docker asks with HEAD first: the manifest is in the storage before HEAD is answered."""
        head = client.head("/v2/git/manifests/latest")
        assert head.status == 200
        assert head.body == b""
        stored = backend.get(blob_key(Digest.parse(head.headers["docker-content-digest"])))
        assert head.headers["content-length"] == str(len(stored))
        assert client.get("/v2/git/manifests/latest").header_lines == head.header_lines

    def test_what_is_not_there_is_404(self, client):
        """An unknown package, an unknown digest, and a reference that is neither tag nor digest."""
        for reference in ("git/manifests/" + str(Digest.of(b"?")), "nothing/manifests/latest", "git/manifests/.x"):
            response = client.get(f"/v2/{reference}")
            assert response.status == 404, reference
            assert response.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"

    def test_docker_types_alone_give_docker_manifest(self, client, backend):
        """A client that takes only Docker's type gets a document of that type, stored under its own digest."""
        response = client.get("/v2/git/manifests/latest", ("Accept", DOCKER_MANIFEST))
        assert response.headers["content-type"] == DOCKER_MANIFEST == response.json()["mediaType"]
        digest = Digest.of(response.body)
        assert backend.get(blob_key(digest)) == response.body
        assert client.get(f"/v2/git/manifests/{digest}").body == response.body

    def test_every_accept_line_is_read(self, client):
        """Docker, podman and skopeo send one line for each type, in any order."""
        lines = [("Accept", DOCKER_MANIFEST), ("Accept", "text/plain"), ("Accept", MANIFEST)]
        assert client.get("/v2/git/manifests/latest", *lines).headers["content-type"] == MANIFEST


class TestPullingBlobs:
    def test_every_blob_of_a_manifest_is_there(self, client):
        """Configuration and layers are served whole, under their digests."""
        manifest = client.get("/v2/git/manifests/latest").json()
        for descriptor in [manifest["config"], *manifest["layers"]]:
            response = client.get(f"/v2/git/blobs/{descriptor['digest']}")
            assert response.status == 200
            assert str(Digest.of(response.body)) == descriptor["digest"] == response.headers["docker-content-digest"]
            assert int(response.headers["content-length"]) == descriptor["size"] == len(response.body)
        assert manifest["config"]["mediaType"] == CONFIG

    def test_an_unknown_blob_is_404(self, client):
        """A blob that is not there is BLOB_UNKNOWN, never an empty 200."""
        response = client.get(f"/v2/git/blobs/{Digest.of(b'?')}")
        assert response.status == 404
        assert response.json()["errors"][0]["code"] == "BLOB_UNKNOWN"

    def test_an_invalid_digest_is_400(self, client):
        """DIGEST_INVALID for what is not a digest, whatever the endpoint."""
        for path in ("blobs/sha256:12", "manifests/sha256:12", "referrers/sha256:12", "blobs/md5:1234"):
            response = client.get(f"/v2/git/{path}")
            assert response.status == 400, path
            assert json.loads(response.body)["errors"][0]["code"] == "DIGEST_INVALID"

    def test_a_blob_that_vanished_is_built_again(self, client, backend):
        """A layer that is gone is 404 once; the next request for the manifest brings it back."""
        layer = layer_of(client)
        backend.delete(blob_key(Digest.parse(layer["digest"])))
        assert client.get(f"/v2/git/blobs/{layer['digest']}").status == 404
        assert client.head("/v2/git/manifests/latest").status == 200
        assert client.get(f"/v2/git/blobs/{layer['digest']}").status == 200

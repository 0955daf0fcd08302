"""A registry tells which images it serves, whatever form their manifests have."""

import asyncio

import pytest

from nixery_core.model.image import ImageSpec
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.served import ServedCounter
from nixery_core.server import registry_app
from nixery_core.server.documents import DOCKER_MANIFEST
from nixery_core.server.warm_up import WarmUp
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder


@pytest.fixture
def builder(tmp_path):
    return memory_builder(open_backend(f"memory://{tmp_path}"), "git", "htop")


def test_manifests_that_are_sent_are_counted(builder):
    """GET counts, by tag and by digest, in OCI's form and in Docker's; HEAD, 304, blobs and failures do not."""
    served = []
    with AsgiClient(registry_app(builder, on_served=served.append)) as client:
        client.head("/v2/git/manifests/latest")
        client.get("/v2/nothing/manifests/latest")
        assert served == []
        response = client.get("/v2/git/manifests/latest")
        image = response.json()["config"]["digest"]
        client.get(f"/v2/git/manifests/{response.headers['docker-content-digest']}")
        client.get("/v2/git/manifests/latest", ("Accept", DOCKER_MANIFEST))
        client.get("/v2/git/manifests/latest", ("If-None-Match", response.headers["etag"]))
        client.get(f"/v2/git/blobs/{image}")
    assert list(map(str, served)) == [image] * 3


def test_a_warm_up_serves_nobody(builder):
    """Images that are asked for before there is a client are not counted."""
    served = []
    app = registry_app(builder, on_served=served.append)
    asyncio.run(WarmUp(app, [("git", "latest")]).run())
    assert builder.find(ImageSpec.parse("git")) is not None
    assert served == []


def test_an_index_is_no_image(builder):
    """Of an index, the manifest that the client then asks for is what counts."""
    served = []
    with AsgiClient(registry_app(builder, platforms=[AMD64, ARM64], on_served=served.append)) as client:
        index = client.get("/v2/git/manifests/latest").json()
        assert served == []
        client.get(f"/v2/git/manifests/{index['manifests'][0]['digest']}")
    assert len(served) == 1


def test_a_counter_counts(builder):
    """A counter and a registry fit together."""
    counter = ServedCounter(builder.backend)
    with AsgiClient(registry_app(builder, on_served=counter.record)) as client:
        client.get("/v2/git/manifests/latest")
        client.get("/v2/git/manifests/latest")
    counter.flush()
    assert (counter.popularity().served, counter.popularity().unknown) == (2, 2)

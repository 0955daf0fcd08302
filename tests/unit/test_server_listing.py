"""Tags and referrers, section by section of the distribution specification ("Content Discovery")."""

import json

import pytest

from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST, Descriptor, ImageIndex, Manifest
from nixery_core.server import registry_app
from nixery_core.server.discovery import referrers_tag
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import ref_key
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder

TAGS = ["1.0", "1.10", "Latest", "latest", "v1", "v2"]


@pytest.fixture
def backend(tmp_path):
    return open_backend(f"memory://{tmp_path}")


@pytest.fixture
def client(backend):
    with AsgiClient(registry_app(memory_builder(backend, "git", "htop"))) as client:
        for tag in reversed(TAGS):
            client.get(f"/v2/git/manifests/{tag}")
        yield client


class TestListingTags:
    def test_every_tag_that_was_built(self, client):
        """In the order of Go's sort.Strings, for the one name only."""
        client.get("/v2/git/htop/manifests/other")
        response = client.get("/v2/git/tags/list")
        assert response.json() == {"name": "git", "tags": TAGS}
        assert response.headers["content-type"] == "application/json"
        head = client.head("/v2/git/tags/list")
        assert (head.status, head.body) == (200, b"")

    def test_an_unknown_name_is_404(self, client):
        """Listing builds nothing."""
        response = client.get("/v2/htop/tags/list")
        assert (response.status, response.json()["errors"][0]["code"]) == (404, "NAME_UNKNOWN")

    def test_pages_lead_to_each_other(self, client):
        """Following the Link headers gives every tag once; the last page has none."""
        path, tags, pages = "/v2/git/tags/list?n=4", [], 0
        while path:
            response = client.get(path)
            tags += response.json()["tags"]
            pages += 1
            link = response.headers.get("link", "")
            assert not link or link.endswith('; rel="next"')
            path = link[1 : link.index(">")] if link else ""
        assert (tags, pages) == (TAGS, 2)

    def test_exactly_one_page_has_no_link(self, client):
        """A list that fits is complete."""
        assert "link" not in client.get(f"/v2/git/tags/list?n={len(TAGS)}").headers

    @pytest.mark.parametrize(
        ("query", "tags"),
        [
            ("n=0", []),
            ("last=1.10", TAGS[2:]),
            ("n=1&last=latest", ["v1"]),
            ("last=1.1", TAGS[1:]),
            ("last=zzz", []),
            ("n=" + "9" * 40, TAGS),
        ],
    )
    def test_n_and_last(self, client, query, tags):
        """Up to n tags behind last, which need not exist; with n=0 none, and no Link."""
        response = client.get(f"/v2/git/tags/list?{query}")
        assert response.json()["tags"] == tags
        assert not (query == "n=0" and "link" in response.headers)

    @pytest.mark.parametrize("query", ["n=-1", "n=", "n=1.5", "n=²"])
    def test_n_is_a_number(self, client, query):
        """Anything else is 400."""
        assert client.get(f"/v2/git/tags/list?{query}").status == 400


class TestListingReferrers:
    @pytest.fixture
    def subject(self, client, backend):
        """The digest of an image with three referrers: two of one type, and one that names another subject."""
        response = client.get("/v2/git/manifests/latest")
        subject = Descriptor(MANIFEST, Digest.of(response.body), len(response.body))
        config = put_blob(backend, b"{}", media_type="application/vnd.example.config")
        entries = []
        for artifact_type, of in [
            ("application/vnd.example.sbom", subject),
            (None, subject),
            ("application/vnd.example.sbom", Descriptor.of(MANIFEST, b"other")),
        ]:
            manifest = Manifest(
                config=config, layers=(), subject=of, artifact_type=artifact_type, annotations={"note": "x"}
            )
            entries.append(put_blob(backend, manifest.to_bytes(), media_type=MANIFEST))
        index = put_blob(backend, ImageIndex(manifests=tuple(entries)).to_bytes(), media_type=INDEX)
        backend.replace(ref_key("git", referrers_tag(subject.digest)), index.to_bytes())
        return subject.digest

    def test_nothing_refers_is_an_empty_index(self, client):
        """200 with an index, never 404, whatever the digest (the API is supported)."""
        response = client.get(f"/v2/git/referrers/{Digest.of(b'?')}")
        assert response.status == 200
        assert response.headers["content-type"] == INDEX
        assert response.json() == {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}

    def test_referrers_are_listed_with_type_and_annotations(self, client, subject):
        """The type is that of the manifest, or of its configuration; what names another subject is left out."""
        manifests = client.get(f"/v2/git/referrers/{subject}").json()["manifests"]
        assert [entry["artifactType"] for entry in manifests] == [
            "application/vnd.example.sbom",
            "application/vnd.example.config",
        ]
        assert all(entry["annotations"] == {"note": "x"} for entry in manifests)

    def test_a_type_filters(self, client, subject):
        """Only manifests of the type, and a header that says that they were filtered."""
        response = client.get(f"/v2/git/referrers/{subject}?artifactType=application/vnd.example.sbom")
        assert len(response.json()["manifests"]) == 1
        assert response.headers["oci-filters-applied"] == "artifactType"
        assert "oci-filters-applied" not in client.get(f"/v2/git/referrers/{subject}").headers

    def test_a_list_that_is_damaged_is_empty(self, client, backend, subject):
        """What cannot be read refers to nothing; the answer is still an index."""
        backend.replace(ref_key("git", referrers_tag(subject)), b"{")
        response = client.get(f"/v2/git/referrers/{subject}")
        assert (response.status, json.loads(response.body)["manifests"]) == (200, [])

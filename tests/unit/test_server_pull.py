"""The pull side of the registry, section by section of the distribution specification ("Pull")."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from nixery_core.model.digest import Digest
from nixery_core.model.oci import CONFIG, MANIFEST
from nixery_core.server import registry_app
from nixery_core.server.documents import DOCKER_MANIFEST
from nixery_core.storage.keys import blob_key
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder


@pytest.fixture
def backend(tmp_path):
    return open_backend(f"memory://{tmp_path}")


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


class TestRanges:
    """RFC 9110, section 14: parts of a blob, as clients ask for them after a broken download."""

    @pytest.fixture
    def blob(self, client):
        layer = layer_of(client)
        path = f"/v2/git/blobs/{layer['digest']}"
        return path, client.get(path).body

    @pytest.mark.parametrize(
        ("header", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=5-9", 5, 10),
            ("bytes=7-", 7, None),
            ("bytes=-4", -4, None),
            ("bytes=-999999", 0, None),
            ("bytes=3-999999", 3, None),
        ],
    )
    def test_a_part_is_206(self, client, blob, header, start, end):
        """One range, from the start, from the end or open, gives these bytes and says which they are."""
        path, whole = blob
        response = client.get(path, ("Range", header))
        wanted = whole[start:end]
        assert response.status == 206
        assert response.body == wanted
        assert response.headers["content-length"] == str(len(wanted))
        first = whole.index(wanted) if start else 0
        if header != "bytes=-999999":
            assert response.headers["content-range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(whole)}"

    @pytest.mark.parametrize(
        "header", ["bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "bytes=x-", "bytes=-", "bytes=" + "9" * 99 + "-"]
    )
    def test_what_is_no_range_is_the_whole_blob(self, client, blob, header):
        """Malformed, reversed and multiple ranges count as none, as section 14.2 allows."""
        path, whole = blob
        response = client.get(path, ("Range", header))
        assert (response.status, response.body) == (200, whole)

    @pytest.mark.parametrize("header", ["bytes=999999-", "bytes=-0"])
    def test_a_range_outside_is_416(self, client, blob, header):
        """A range behind the end says how long the blob is."""
        path, whole = blob
        response = client.get(path, ("Range", header))
        assert response.status == 416
        assert response.headers["content-range"] == f"bytes */{len(whole)}"
        assert response.json()["errors"][0]["code"] == "SIZE_INVALID"

    def test_if_range_wants_the_same_blob(self, client, blob):
        """With another ETag, or a date, the client gets the whole blob."""
        path, whole = blob
        etag = client.head(path).headers["etag"]
        assert client.get(path, ("Range", "bytes=1-"), ("If-Range", etag)).body == whole[1:]
        for other in ('"other"', f"W/{etag}", "Tue, 24 Nov 2026 21:00:00 GMT"):
            assert client.get(path, ("Range", "bytes=1-"), ("If-Range", other)).body == whole

    def test_many_clients_resume_at_once(self, client, blob):
        """Each of many clients puts the blob together from pieces of its own, all at the same time."""
        path, whole = blob

        async def resume(size):
            got = b""
            while len(got) < len(whole):
                response = await client.request(path, ("Range", f"bytes={len(got)}-{len(got) + size - 1}"))
                assert response.status == 206
                got += response.body
            return got

        async def all_of_them():
            return await asyncio.gather(*(resume(size) for size in range(17, 57)))

        assert set(client.run(all_of_them())) == {whole}


class TestConditions:
    """RFC 9110, section 13: who has it already is told so."""

    def test_an_unchanged_manifest_is_304(self, client):
        """If-None-Match with the ETag, weak or in a list, or with a star, answers 304 without a body."""
        first = client.get("/v2/git/manifests/latest")
        etag = first.headers["etag"]
        for value in (etag, f'"x", W/{etag}', "*"):
            response = client.get("/v2/git/manifests/latest", ("If-None-Match", value))
            assert (response.status, response.body) == (304, b"")
            assert response.headers["docker-content-digest"] == first.headers["docker-content-digest"]
        assert client.get("/v2/git/manifests/latest", ("If-None-Match", '"x"')).status == 200

    def test_an_unchanged_blob_is_304(self, client):
        """The same for blobs, for GET and HEAD."""
        path = f"/v2/git/blobs/{layer_of(client)['digest']}"
        etag = client.head(path).headers["etag"]
        assert client.get(path, ("If-None-Match", etag)).status == 304
        assert client.head(path, ("If-None-Match", etag)).status == 304


class TestErrors:
    """The section "Error Codes": a JSON body for every failure."""

    def test_every_failure_has_a_body_of_the_specification(self, client):
        """Also unknown routes, other methods, bad names and bad queries."""
        for path, method, status, code in [
            ("/", "GET", 404, "UNSUPPORTED"),
            ("/v1/", "GET", 404, "UNSUPPORTED"),
            ("/v2/_catalog", "GET", 404, "UNSUPPORTED"),
            ("/v2/git/manifests/", "GET", 404, "MANIFEST_UNKNOWN"),
            ("/v2/manifests/latest", "GET", 404, "UNSUPPORTED"),
            ("/v2/Git/manifests/latest", "GET", 400, "NAME_INVALID"),
            ("/v2/a//b/manifests/latest", "GET", 400, "NAME_INVALID"),
            ("/v2/git/tags/list?n=x", "GET", 400, "UNSUPPORTED"),
            ("/v2/arm64/manifests/latest", "GET", 404, "NAME_UNKNOWN"),
            ("/v2/git/manifests/latest", "PUT", 405, "UNSUPPORTED"),
            ("/v2/git/manifests/latest", "DELETE", 405, "UNSUPPORTED"),
            ("/v2/git/blobs/uploads/", "POST", 405, "UNSUPPORTED"),
            ("/v2/git/blobs/uploads/1234", "PATCH", 405, "UNSUPPORTED"),
            ("/v2/git/blobs/uploads/1234", "GET", 404, "BLOB_UPLOAD_UNKNOWN"),
        ]:
            response = client.get(path, method=method)
            assert response.status == status, path
            (error,) = response.json()["errors"]
            assert error["code"] == code, path
            assert error["message"]
            assert response.headers["content-type"] == "application/json"
            assert client.head(path).body == b""
            if status == 405:
                assert response.headers["allow"] in ("GET, HEAD", "")

    def test_a_mistake_of_the_server_tells_nothing(self, backend, caplog):
        """What a source raises that is no error of ours is a 500 with an id for the log, and none of its words."""

        class Broken:
            def pin(self, tag):
                raise RuntimeError("password hunter2")

        with AsgiClient(registry_app(memory_builder(backend, "git", source=Broken()))) as client:
            response = client.get("/v2/git/manifests/latest")
        (error,) = response.json()["errors"]
        assert (response.status, error["code"]) == (500, "UNKNOWN")
        assert b"hunter2" not in response.body
        assert error["detail"]["request"] in caplog.text

    def test_a_storage_that_fails_is_503(self, tmp_path, caplog):
        """The client is told to come again, and not which bucket it is."""
        (tmp_path / "file").write_text("")
        with AsgiClient(registry_app(memory_builder(open_backend(tmp_path / "file"), "git"))) as client:
            response = client.get("/v2/git/manifests/latest")
        assert response.status == 503
        assert "retry-after" in response.headers
        assert str(tmp_path).encode() not in response.body
        assert str(tmp_path) in caplog.text


class TestNames:
    def test_names_up_to_the_edge_of_the_grammar(self, backend):
        """255 characters, every separator, slashes at will."""
        names = ["a", "a.b_c__d-e---f", "x" * 255, "/".join(["a"] * 128)]
        packages = [name for name in names if "/" not in name]
        with AsgiClient(registry_app(memory_builder(backend, *packages))) as client:
            for name in names:
                assert client.get(f"/v2/{name}/manifests/latest").status == 200, name
            for name in ["x" * 256, "a..b", "a___b", "-a", "a-", "a/", "/a", "A", "a+b"]:
                response = client.get(f"/v2/{name}/manifests/latest")
                assert response.json()["errors"][0]["code"] == "NAME_INVALID", name

    def test_a_name_may_hold_the_words_of_the_api(self, backend):
        """`manifests`, `blobs` and `tags` can be packages: the last two words of a path decide."""
        with AsgiClient(registry_app(memory_builder(backend, "manifests", "tags", "blobs"))) as client:
            for name in ("manifests/tags", "blobs", "tags/list"):
                response = client.get(f"/v2/{name}/manifests/latest")
                assert response.status == (404 if "list" in name else 200), name

    def test_ns_changes_nothing(self, client):
        """`?ns=`, which mirrors are asked with, is taken and has no say (spec, "Registry Proxying")."""
        plain = client.get("/v2/git/manifests/latest")
        assert client.get("/v2/git/manifests/latest?ns=docker.io").header_lines == plain.header_lines

    def test_mounted_below_a_path(self, backend):
        """What an application is mounted under does not belong to the names; its lifespan never runs."""
        with AsgiClient(registry_app(memory_builder(backend, "git")), root_path="/images") as client:
            assert client.get("/images/v2/").status == 200
            assert client.get("/images/v2/git/manifests/latest").status == 200
            listing = client.get("/images/v2/git/tags/list?n=0")
            assert listing.json() == {"name": "git", "tags": []}


class _Signing(LocalBackend):
    def signed_url(self, key, *, method="GET", expires=3600, content_type=None):
        return f"https://bucket.example.org/{key}?signature={method}{expires}"


class TestRedirects:
    def test_a_storage_that_signs_is_asked(self, tmp_path):
        """GET is sent to the storage itself with 307; HEAD is answered here, since such URLs are good for GET alone."""
        builder = memory_builder(_Signing(tmp_path), "git")
        with AsgiClient(registry_app(builder, redirect_expires=60)) as client:
            path = f"/v2/git/blobs/{layer_of(client)['digest']}"
            response = client.get(path)
            assert response.status == 307
            assert response.headers["location"].endswith("?signature=GET60")
            assert response.headers["cache-control"] == "no-store"
            assert client.head(path).status == 200
            assert client.get(f"/v2/git/blobs/{Digest.of(b'?')}").status == 404

    def test_redirects_can_be_off(self, tmp_path):
        """With 0 every blob is served from here."""
        with AsgiClient(registry_app(memory_builder(_Signing(tmp_path), "git"), redirect_expires=0)) as client:
            assert client.get(f"/v2/git/blobs/{layer_of(client)['digest']}").status == 200


class TestStreaming:
    @pytest.mark.parametrize("files", [True, False])
    def test_blobs_come_from_any_storage(self, tmp_path, files):
        """Whether the storage has files or not, blobs are served whole and in part."""
        backend = LocalBackend(tmp_path) if files else open_backend(f"memory://{tmp_path}")
        with AsgiClient(registry_app(memory_builder(backend, "git"))) as client:
            layer = layer_of(client)
            path = f"/v2/git/blobs/{layer['digest']}"
            whole = client.get(path).body
            assert str(Digest.of(whole)) == layer["digest"]
            assert client.get(path, ("Range", "bytes=10-19")).body == whole[10:20]

    def test_a_slow_client_holds_one_piece(self, tmp_path, monkeypatch):
        """The next piece is read when the one before has gone out."""
        monkeypatch.setattr("nixery_core.server.files.PIECE", 10)
        read = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: read.append(at) or pread(fd, size, at))
        with AsgiClient(registry_app(memory_builder(LocalBackend(tmp_path), "git"))) as client:
            path = f"/v2/git/blobs/{layer_of(client)['digest']}"
            ahead = []

            async def slow(message):
                sent = ahead[-1][0] + len(message.get("body", b"")) if ahead else 0
                await asyncio.sleep(0)
                ahead.append((sent, len(read) * 10))

            client.run(client.request(path, on_message=slow))
        assert len(ahead) > 5
        assert all(had - sent <= 10 for sent, had in ahead[1:])

    @pytest.mark.parametrize("extension", ["http.response.zerocopysend", "http.response.pathsend"])
    def test_a_server_that_sends_files_gets_them(self, tmp_path, extension):
        """The two ASGI extensions for files are used where the server has them; pathsend for whole blobs only."""
        seen = []

        async def look(message):
            seen.append(message)

        application = registry_app(memory_builder(LocalBackend(tmp_path), "git"))
        with AsgiClient(application, extensions=[extension]) as client:
            layer = layer_of(client)
            path = f"/v2/git/blobs/{layer['digest']}"
            client.run(client.request(path, on_message=look))
            assert seen[-1]["type"] == extension
            if "path" in seen[-1]:
                assert Digest.of(Path(seen[-1]["path"]).read_bytes()) == Digest.parse(layer["digest"])
                assert client.get(path, ("Range", "bytes=0-3")).status == 206
            else:
                assert (seen[-1]["offset"], seen[-1]["count"]) == (0, layer["size"])

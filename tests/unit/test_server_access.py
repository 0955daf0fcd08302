"""Who may pull: the hook, basic and bearer, and digests that belong to names."""

import base64
import inspect

import attrs
import pytest

from nixery_core.errors import InvalidConfig
from nixery_core.server import (
    Allowed,
    Challenge,
    Denied,
    basic_auth,
    basic_credentials,
    bearer_auth,
    registry_app,
)
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder


@pytest.fixture
def open_client(tmp_path):
    """A function that gives a client of a registry with a hook."""
    clients = []

    def make(authorise):
        builder = memory_builder(open_backend(f"memory://{tmp_path}"), "git", "htop")
        clients.append(AsgiClient(registry_app(builder, authorise=authorise)))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def basic(name, password):
    return ("Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode())


class TestHook:
    def test_it_hears_of_every_request(self, open_client):
        """Endpoint, name, reference, method and credentials, before anything is built."""
        heard = []

        async def authorise(request):
            heard.append(attrs.evolve(request, scope={}))
            return Denied("not today")

        client = open_client(authorise)
        for path in ("/v2/", "/v2/a/b/manifests/latest", "/v2/a/blobs/sha256:" + "0" * 64, "/v2/a/tags/list"):
            response = client.get(path, ("Authorization", "Secret x"))
            assert (response.status, response.json()["errors"][0]["code"]) == (403, "DENIED")
            assert "not today" in response.body.decode()
        assert [request.name for request in heard] == ["", "a/b", "a", "a"]
        assert [request.endpoint.value for request in heard] == ["base", "manifests", "blobs", "tags"]
        assert [request.reference for request in heard][1:3] == ["latest", "sha256:" + "0" * 64]
        assert {request.authorization for request in heard} == {"Secret x"}

    def test_without_a_hook_everyone_pulls(self, open_client):
        """None is no hook."""
        assert open_client(None).get("/v2/git/manifests/latest").status == 200

    def test_a_hook_may_be_a_plain_function(self, open_client):
        """What needs not wait needs not be async."""
        client = open_client(lambda request: Allowed() if request.name == "git" else Challenge("Basic realm=x"))
        assert client.get("/v2/git/manifests/latest").status == 200
        refused = client.get("/v2/htop/manifests/latest")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Basic realm=x")

    def test_a_hook_that_fails_lets_nobody_in(self, open_client):
        """Whatever it raises, or says that means nothing, is a 500 and not an image."""

        def broken(request):
            raise KeyError("secret")

        for hook in (broken, lambda request: None):
            response = open_client(hook).get("/v2/git/manifests/latest")
            assert response.status == 500
            assert b"secret" not in response.body


class TestBinding:
    def test_a_digest_is_served_under_its_names_only(self, open_client):
        """With bind, blobs and manifests of one name cannot be had through another, nor can what refers to them."""
        bound = open_client(lambda request: Allowed(bind=True))
        manifests = {name: bound.get(f"/v2/{name}/manifests/latest") for name in ("git", "htop")}
        own = manifests["git"].headers["docker-content-digest"]
        layer = manifests["git"].json()["layers"][0]["digest"]
        config = manifests["git"].json()["config"]["digest"]
        for path in (f"manifests/{own}", f"blobs/{layer}", f"blobs/{config}", f"referrers/{own}"):
            assert bound.get(f"/v2/git/{path}").status == 200
            assert bound.get(f"/v2/htop/{path}").status == 404
            assert bound.get(f"/v2/unknown/{path}").status == 404

    def test_the_storage_knows_what_belongs_to_a_name(self, open_client):
        """Another process, which has not built the image, serves the same digests."""
        first = open_client(None)
        layer = first.get("/v2/git/manifests/latest").json()["layers"][0]["digest"]
        second = open_client(lambda request: Allowed(bind=True))
        assert second.get(f"/v2/git/blobs/{layer}").status == 200
        assert second.get(f"/v2/htop/blobs/{layer}").status == 404

    def test_without_bind_content_is_content(self, open_client):
        """A digest says what the bytes are; who may pull at all may have them under any name."""
        client = open_client(lambda request: Allowed())
        layer = client.get("/v2/git/manifests/latest").json()["layers"][0]["digest"]
        assert client.get(f"/v2/anything/blobs/{layer}").status == 200


class TestBasic:
    def test_name_and_password(self, open_client):
        """Right ones are let in; others are challenged, in the words that docker and skopeo take."""
        client = open_client(basic_auth({"me": "hunter2", "ü": "ß"}, realm='my "registry"'))
        for headers in (
            [],
            [basic("me", "x")],
            [basic("you", "hunter2")],
            [basic("you", "")],
            [("Authorization", "Basic %")],
        ):
            response = client.get("/v2/", *headers)
            assert response.status == 401
            assert response.headers["www-authenticate"] == 'Basic realm="my \\"registry\\""'
            assert response.json()["errors"][0]["code"] == "UNAUTHORIZED"
        assert client.get("/v2/", basic("me", "hunter2")).status == 200
        assert client.get("/v2/", basic("ü", "ß")).status == 200

    @pytest.mark.parametrize(
        "value", [None, "", "Basic", "Basic bWU=", "Bearer bWU6eA==", "Basic /w==", "Basic bW U6eA=="]
    )
    def test_what_holds_no_credentials(self, value):
        """Other schemes, no colon, no UTF-8, no base 64."""
        assert basic_credentials(value) is None


class TestBearer:
    def test_a_token_server_is_named(self, open_client):
        """Without a token the challenge says where to get one, and for what."""
        client = open_client(bearer_auth(lambda token, request: None, realm="https://auth.example.org/t", service="r"))
        challenge = client.get("/v2/a/b/manifests/latest").headers["www-authenticate"]
        assert challenge == 'Bearer realm="https://auth.example.org/t",service="r",scope="repository:a/b:pull"'
        assert "scope" not in client.get("/v2/").headers["www-authenticate"]
        again = client.get("/v2/a/manifests/latest", ("Authorization", "Bearer old")).headers["www-authenticate"]
        assert again.endswith('error="invalid_token"')

    @pytest.mark.parametrize("wait", [False, True])
    def test_a_token_is_judged(self, open_client, wait):
        """The check gets token and request, and decides, at once or after a while."""

        def judge(token, request):
            return {"good": Allowed(), "poor": Denied()}.get(token)

        async def judge_later(token, request):
            return judge(token, request)

        client = open_client(bearer_auth(judge_later if wait else judge, realm="https://a.example.org", service="r"))
        statuses = {
            token: client.get("/v2/", ("Authorization", f"Bearer {token}")).status
            for token in ("good", "poor", "other")
        }
        assert statuses == {"good": 200, "poor": 403, "other": 401}
        assert inspect.iscoroutinefunction(judge_later)

    def test_a_realm_is_a_url(self):
        """Clients could not ask anything else."""
        with pytest.raises(InvalidConfig):
            bearer_auth(lambda token, request: None, realm="auth", service="r")

"""The HTTP surface: whatever a client sends, the answer is one of the specification's."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nixery_core.model.digest import Digest
from nixery_core.server import registry_app
from nixery_core.server.ranges import Part, wanted_part
from nixery_core.server.refusals import Refusal
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder

pytestmark = pytest.mark.property

# distribution-spec, "Error Codes"
CODES = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
}
DIGEST = str(Digest.of(b""))
WORDS = st.sampled_from(
    [
        "v2",
        "",
        "git",
        "htop",
        "arm64",
        "shell",
        "manifests",
        "blobs",
        "uploads",
        "tags",
        "list",
        "referrers",
        "latest",
        "sha256:",
        DIGEST,
        DIGEST.upper(),
        "sha512:00",
        "..",
        "%2e%2e",
        "_catalog",
        "a" * 256,
        "ä",
        "\x00",
        "Git",
        "a__b",
    ]
)
PATHS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=6).map(lambda words: "/v2/" + "/".join(words)),
    st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=5).map(lambda words: "/" + "/".join(words)),
)
QUERIES = st.one_of(
    st.just(""),
    st.sampled_from(["ns=docker.io", "n=1", "n=0", "n=-1", "last=x&n=1", "artifactType=a/b", "n=1&" * 200, "%zz=%"]),
    st.text(max_size=10),
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "*/*",
            "application/vnd.oci.image.manifest.v1+json",
            "text/html;q=0",
            "bytes=0-",
            "bytes=-1",
            "bytes=9-1",
            "*",
            "Basic bWU6eA==",
            "Bearer x",
            '"x", W/"y"',
            "bytes=" + "1" * 5000 + "-",
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Accept", "Range", "If-Range", "If-None-Match", "Authorization", "Host", "Accept-Encoding"]),
        VALUES,
    ),
    max_size=4,
)
METHODS = st.one_of(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8),
)


@pytest.fixture(scope="module")
def client():
    application = registry_app(memory_builder(open_backend("memory://server-properties"), "git"), remember_failures=60)
    with AsgiClient(application) as client:
        client.get("/v2/git/manifests/latest")
        yield client


@given(path=PATHS, query=QUERIES, headers=HEADERS, method=METHODS)
@example(path="/v2/git/manifests/latest", query="", headers=[("Accept", "")], method="GET")
@example(path="/\n0", query="", headers=[], method="HEAD")
@example(path="/v2/_catalog", query="", headers=[], method="GET")
@settings(max_examples=300, deadline=None)
def test_every_answer_is_one_of_the_specification(client, path, query, headers, method):
    """No request is answered with 5xx, and each failure has a code of the specification in a JSON body."""
    response = client.get(f"{path}?{query}" if query else path, *headers, method=method)
    assert 200 <= response.status < 500
    length = int(response.headers.get("content-length", 0))
    if method == "HEAD":
        assert response.body == b""
    elif response.status not in (304, 405) or response.body:
        assert length == len(response.body)
    if response.status >= 400 and method != "HEAD":
        assert response.headers["content-type"] == "application/json"
        for error in json.loads(response.body)["errors"]:
            assert error["code"] in CODES
            assert isinstance(error["message"], str)
    elif response.status in (200, 206) and re.search("/(manifests|blobs)/", path):
        assert Digest.parse(response.headers["docker-content-digest"])


@given(path=PATHS, headers=HEADERS)
@settings(max_examples=100, deadline=None)
def test_head_is_get_without_a_body(client, path, headers):
    """The status and the headers of HEAD are those of GET, but for parts of blobs, which only GET has."""
    plain = [(name, value) for name, value in headers if name not in ("Range", "If-Range")]
    head, get = client.head(path, *plain), client.get(path, *plain)
    assert (head.status, head.header_lines) == (get.status, get.header_lines)


@given(
    size=st.integers(0, 50),
    header=st.one_of(
        st.builds(
            "bytes={}-{}".format,
            st.one_of(st.just(""), st.integers(0, 60)),
            st.one_of(st.just(""), st.integers(0, 60)),
        ),
        st.text(max_size=12),
    ),
)
def test_a_part_lies_within_the_blob(size, header):
    """A range gives a part of at least one byte within the blob, the whole blob, or 416."""
    part: Part | Refusal | None
    try:
        part = wanted_part(header, None, '"e"', size)
    except Refusal as refusal:
        part = refusal
    if isinstance(part, Refusal):
        assert part.status == 416
        assert dict(part.headers)["content-range"] == f"bytes */{size}"
    elif part is not None:
        assert 0 <= part.start < part.end <= part.size == size

"""The registry with the clients that people pull with, over real sockets."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import http.server
import json
import os
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixery_core import ImageBuilder, LocalPath, Nix, open_backend
from nixery_core.model.digest import Digest
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.nix.demo import demo_path
from nixery_core.server import Allowed, basic_auth, bearer_auth, registry_app
from nixery_core.server.sendfile import Sendfile
from nixery_core.testing.memory_images import memory_builder, memory_packages
from nixery_core.testing.memory_realiser import MemoryRealiser
from nixery_core.testing.serving import served

Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that serves an application on a free port and returns its address."""
    with contextlib.ExitStack() as stack:
        yield lambda app, **options: stack.enter_context(served(app, **options))


class Slow(MemoryRealiser):
    """Takes its time to find packages, as builds do."""

    def evaluate(self, *arguments, **named):
        time.sleep(1.0)
        return super().evaluate(*arguments, **named)


def run(*command: object, **options) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def skopeo(*words: object) -> str:
    return run("skopeo", *words)


def pull(address: str, image: str, to: Path, *options: str) -> str:
    return skopeo("copy", "-q", "--src-tls-verify=false", *options, f"docker://{address}/{image}", f"oci:{to}:x")


class TestRealImages:
    """Images of the demo set, built by Nix when they are asked for."""

    @pytest.fixture
    def address(self, nix: Nix, tmp_path: Path, start: Start, require) -> str:
        require("skopeo")
        builder = ImageBuilder(LocalPath(demo_path()), open_backend(tmp_path / "images"), realiser=nix)
        return start(Sendfile(registry_app(builder, tag_ttl=600, patience=300)))

    def test_skopeo_and_umoci(self, address: str, tmp_path: Path, require) -> None:
        """Skopeo copies the image bit by bit, umoci unpacks it, and the tags are listed."""
        require("umoci")
        pull(address, "hello", tmp_path / "layout")
        listed = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{address}/hello"))
        assert listed["Tags"] == ["latest"]
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{address}/hello")
        index = json.loads((tmp_path / "layout" / "index.json").read_text())
        assert index["manifests"][0]["digest"] == str(Digest.of(raw.encode()))
        run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/layout:x", tmp_path / "bundle")
        assert (tmp_path / "bundle" / "rootfs" / "bin" / "hello").is_symlink()
        # umoci leaves the directories of the store without write permission
        for folder, _, _ in os.walk(tmp_path / "bundle"):
            Path(folder).chmod(0o700)

    def test_podman_runs_it(self, address: str, podman: Callable[..., str]) -> None:
        """`podman run` pulls and runs an image that nobody has built before."""
        assert podman("run", "--rm", "--tls-verify=false", f"{address}/hello", "hello") == "Hello, world!\n"

    def test_containerd_pulls_it(self, address: str, containerd: Path, require) -> None:
        """Containerd asks with HEAD by tag, then with GET by digest, and unpacks what it gets."""
        require("ctr")
        ctr = functools.partial(run, "ctr", "--address", containerd)
        ctr("images", "pull", "--plain-http", "--snapshotter", "native", f"{address}/hello:latest")
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{address}/hello")
        assert str(Digest.of(raw.encode())) in ctr("images", "ls")

    def test_a_package_that_is_not_there(self, address: str, tmp_path: Path) -> None:
        """Skopeo prints what the registry says: the name, and what was meant."""
        with pytest.raises(AssertionError, match=r"helo: not found; did you mean hello\?"):
            pull(address, "helo", tmp_path / "layout")


class TestPullingWhileBuilding:
    def test_clients_wait_for_builds_longer_than_their_requests(self, tmp_path: Path, start: Start, require) -> None:
        """Four images, one build at a time, each longer than the patience: skopeo comes again and gets them all."""
        require("skopeo")
        names = [f"p{number}" for number in range(4)]
        builder = ImageBuilder(
            memory_builder(open_backend("memory://unused")).source,
            open_backend(tmp_path / "images"),
            realiser=Slow(memory_packages(*names)),
        )
        address = start(registry_app(builder, max_concurrent_builds=1, patience=0.5, retry_after=2))
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: pull(address, name, tmp_path / name), names))
        for name in names:
            assert (tmp_path / name / "index.json").exists()

    def test_a_platform_is_chosen_from_an_index(self, tmp_path: Path, start: Start, require) -> None:
        """Skopeo takes the image of its own platform, or of the one that it is told, or the whole index."""
        require("skopeo")
        builder = memory_builder(open_backend(tmp_path / "images"), "git")
        address = start(registry_app(builder, platforms=[AMD64, ARM64]))
        image = f"docker://{address}/git"
        for architecture in ("amd64", "arm64"):
            shown = skopeo("--override-arch", architecture, "inspect", "--config", "--tls-verify=false", image)
            assert json.loads(shown)["architecture"] == architecture
        pull(address, "git", tmp_path / "layout", "--all")

    def test_a_peer_takes_it_unchanged(self, tmp_path: Path, start: Start, registry: str) -> None:
        """What is copied to docker-registry has the same digest there."""
        address = start(registry_app(memory_builder(open_backend(tmp_path / "images"), "git")))
        copy = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
        skopeo(*copy, f"docker://{address}/git", f"docker://{registry}/git:x")
        raw = [
            skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{place}")
            for place in (f"{address}/git", f"{registry}/git:x")
        ]
        assert raw[0] == raw[1]


class TestAuthorisation:
    def test_basic(self, tmp_path: Path, start: Start, require) -> None:
        """Skopeo sends credentials when it is challenged, and gives up with wrong ones."""
        require("skopeo")
        builder = memory_builder(open_backend(tmp_path / "images"), "git")
        address = start(registry_app(builder, authorise=basic_auth({"me": "pw"}, bind=True)))
        pull(address, "git", tmp_path / "layout", "--src-creds", "me:pw")
        for credentials in (["--src-creds", "me:no"], ["--src-no-creds"]):
            with pytest.raises(AssertionError, match=r"authentication required|unauthorized|wrong user"):
                pull(address, "git", tmp_path / "refused", *credentials)

    def test_bearer(self, tmp_path: Path, start: Start, require) -> None:
        """Skopeo follows the challenge to the token server, and comes back with a token for this image."""
        require("skopeo")
        asked = []

        class Tokens(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query))
                good = self.headers["Authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
                body = json.dumps({"token": "for git"} if good else {}).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                hook = bearer_auth(
                    lambda token, request: Allowed(bind=True) if token == "for git" else None,
                    realm=f"http://127.0.0.1:{server.server_port}/token",
                    service="images",
                )
                builder = memory_builder(open_backend(tmp_path / "images"), "git")
                address = start(registry_app(builder, authorise=hook))
                pull(address, "git", tmp_path / "layout", "--src-creds", "me:pw")
            finally:
                server.shutdown()
                thread.join()
        assert {"repository:git:pull"} == {scope for query in asked for scope in query["scope"]}

    def test_tls(self, tmp_path: Path, start: Start, require) -> None:
        """Over TLS clients get the same, and files go out piece by piece."""
        require("skopeo", "openssl")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        )
        builder = memory_builder(open_backend(tmp_path / "images"), "git")
        address = start(Sendfile(registry_app(builder)), ssl_certfile=str(certificate), ssl_keyfile=str(key))
        folder = tmp_path / "certs"
        folder.mkdir()
        (folder / "ca.crt").write_bytes(certificate.read_bytes())
        skopeo("copy", "-q", "--src-cert-dir", folder, f"docker://{address}/git", f"oci:{tmp_path}/layout:x")
        context = ssl.create_default_context(cafile=str(certificate))
        host, port = address.split(":")
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
        connection.request("GET", "/v2/")
        assert connection.getresponse().read() == b"{}"
        connection.close()


class TestFiles:
    @pytest.fixture
    def sent(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many bytes each call of the kernel's sendfile has sent."""
        sent: list[int] = []
        sendfile = os.sendfile

        def counted(*arguments: int) -> int:
            sent.append(sendfile(*arguments))
            return sent[-1]

        monkeypatch.setattr(os, "sendfile", counted)
        return sent

    @pytest.fixture
    def blob(self, tmp_path: Path, start: Start) -> tuple[http.client.HTTPConnection, str, bytes]:
        """A connection, and a blob of 40 MB in the storage."""
        backend = open_backend(tmp_path / "images")
        whole = os.urandom(40_000_000)
        writer = backend.open_blob()
        writer.write(whole)
        writer.commit(Digest.of(whole))
        host, port = start(Sendfile(registry_app(memory_builder(backend, "git")))).split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        return connection, f"/v2/git/blobs/{Digest.of(whole)}", whole

    def test_files_go_out_inside_the_kernel(self, blob, sent: list[int]) -> None:
        """Whole blobs and parts come from sendfile, and the connection goes on afterwards."""
        connection, path, whole = blob
        for header, expected in [({}, whole), ({"Range": "bytes=1000-20999999"}, whole[1000:21_000_000])]:
            connection.request("GET", path, headers=header)
            response = connection.getresponse()
            assert response.read() == expected
            assert sum(sent) == len(expected)
            sent.clear()
        connection.request("HEAD", path)
        assert int(connection.getresponse().headers["content-length"]) == len(whole)
        connection.close()

    def test_a_slow_client_and_one_that_leaves(self, blob, sent: list[int]) -> None:
        """One that reads slowly gets every byte; one that leaves in the middle leaves nothing open."""
        connection, path, whole = blob
        connection.request("GET", path)
        response = connection.getresponse()
        got = response.read(1_000_000)
        time.sleep(0.5)
        assert sum(sent) < len(whole)
        assert got + response.read() == whole
        connection.request("GET", path)
        connection.getresponse().read(1000)
        before = open_files()
        connection.close()
        deadline = time.monotonic() + 10
        while open_files() >= before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

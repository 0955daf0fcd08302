"""What Docker Engine pulls, runs and says, with the registry over real sockets."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from nixery_core import ImageBuilder, LocalPath, Nix, open_backend
from nixery_core.layering.simple import PerPathLayerer
from nixery_core.model.digest import Digest
from nixery_core.model.oci import INDEX, MANIFEST
from nixery_core.model.platform import AMD64, ARM64
from nixery_core.model.storepath import StorePath
from nixery_core.nix.demo import demo_path
from nixery_core.server import basic_auth, registry_app
from nixery_core.server.sendfile import Sendfile
from nixery_core.testing.faulty_proxy import FaultyProxy
from nixery_core.testing.memory_images import MemorySource, memory_packages
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser
from nixery_core.testing.memory_store import Executable, SymbolicLink
from nixery_core.testing.serving import served

Docker = Callable[..., str]
RUN = ("run", "--rm", "--network=none")


@attrs.define
class Registry:
    """A registry that remembers what it was asked for."""

    app: Callable
    address: str = ""
    asked: list[tuple[str, str]] = attrs.field(factory=list)
    """The digest of a blob that was asked for, and the range of it."""

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and "/blobs/" in scope["path"]:
            self.asked.append((scope["path"].rpartition("/")[2], dict(scope["headers"]).get(b"range", b"").decode()))
        await self.app(scope, receive, send)

    def get(self, image: str, wanted: str = "latest", accept: str = MANIFEST) -> tuple[str, dict]:
        """Return the digest of a manifest and the document."""
        request = urllib.request.Request(
            f"http://{self.address}/v2/{image}/manifests/{wanted}", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return str(Digest.of(body)), json.loads(body)


def digests(manifest: dict) -> list[str]:
    """Return the layers of an image, from the bottom, and its configuration."""
    return [blob["digest"] for blob in (*manifest["layers"], manifest["config"])]


@pytest.fixture
def asks_containerd(docker: Docker) -> bool:
    """Whether the engine has containerd pull for it, as new installations of 29 do."""
    return "io.containerd.snapshotter" in docker("info", "--format", "{{json .DriverStatus}}")


@pytest.fixture
def start() -> Iterator[Callable[..., Registry]]:
    """A function that serves the images of a builder on a free port."""
    with contextlib.ExitStack() as stack:

        def serve(builder: ImageBuilder, **options: object) -> Registry:
            registry = Registry(Sendfile(registry_app(builder, **options)))
            registry.address = stack.enter_context(served(registry))
            return registry

        yield serve


class TestRealImages:
    """Images of the demo set, built by Nix when docker asks for them."""

    @pytest.fixture
    def packages(self, tmp_path: Path) -> Path:
        """A copy of the demo set."""
        return Path(shutil.copytree(demo_path(), tmp_path / "packages"))

    @pytest.fixture
    def builder(self, nix: Nix, packages: Path, tmp_path: Path) -> ImageBuilder:
        return ImageBuilder(LocalPath(packages), open_backend(tmp_path / "images"), realiser=nix)

    def test_a_pull_builds_what_then_runs(self, docker: Docker, builder: ImageBuilder, start) -> None:
        """Docker reports the digest of the manifest, runs the program, and asks for no blob again."""
        registry = start(builder, patience=300)
        image = f"{registry.address}/hello"
        assert list(builder.backend.list("blobs/")) == []
        printed = docker("pull", image)
        digest, manifest = registry.get("hello")
        assert f"Digest: {digest}\n" in printed
        assert f"{image}@{digest}" in json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", image))
        assert sorted(registry.asked) == sorted((blob, "") for blob in digests(manifest))
        assert docker(*RUN, image, "hello") == "Hello, world!\n"

        registry.asked.clear()
        assert "Image is up to date" in docker("pull", image)
        assert registry.asked == []

    def test_a_pull_by_digest(self, docker: Docker, builder: ImageBuilder, start) -> None:
        """What was built once is pulled by its digest, and runs."""
        registry = start(builder, patience=300)
        digest, _ = registry.get("lookup")
        image = f"{registry.address}/lookup@{digest}"
        assert f"Digest: {digest}\n" in docker("pull", image)
        assert docker(*RUN, image, "lookup").startswith("hello\nwelcome\n")
        with pytest.raises(AssertionError, match="not found"):
            docker("pull", f"{registry.address}/lookup@sha256:{'0' * 64}")

    def test_an_update_comes_without_the_layers_below_it(
        self, docker: Docker, builder: ImageBuilder, packages: Path, start, require
    ) -> None:
        """Of an image whose packages have changed docker asks for what is new, and for no layer below that."""
        require("busybox")
        registry = start(builder, patience=300, tag_ttl=0.01)
        image = f"{registry.address}/shell/editor-small"
        docker("pull", image)
        _, before = registry.get("shell/editor-small")
        registry.asked.clear()
        file = packages / "default.nix"
        file.write_text(file.read_text().replace("the small editor", "an editor that is new"))
        docker("pull", image)
        digest, after = registry.get("shell/editor-small")

        asked, old, new = [blob for blob, _ in registry.asked], digests(before), digests(after)
        kept = next(index for index, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        assert kept >= 2
        assert set(asked) & set(old[:kept]) == set()
        assert set(new) - set(old) <= set(asked) <= set(new)
        assert len(asked) == len(set(asked))
        assert docker(*RUN, image, "bash", "-c", "editor | cat") == "an editor that is new\n"
        assert digest in docker("image", "inspect", "--format", "{{.RepoDigests}}", image)

    @pytest.mark.parametrize(
        ("name", "said", "said_by_containerd"),
        [
            ("helo", r"manifest unknown: helo: not found; did you mean hello\?", "helo:latest: not found"),
            ("hello:v1", r"manifest unknown: there is no such tag \(use the tag latest\)", "hello:v1: not found"),
            ("unfree", "denied: unfree: unfree", ": unfree: unfree|403 Forbidden"),
            ("fails", "builder for .*fails-1.0.drv' failed with exit code 3", "422 Unprocessable Entity"),
        ],
    )
    def test_docker_says_why_there_is_no_image(
        self, docker: Docker, builder: ImageBuilder, start, asks_containerd, name, said, said_by_containerd
    ) -> None:
        """What docker prints names the package and the reason; containerd shows little more than the status."""
        with pytest.raises(AssertionError, match=said_by_containerd if asks_containerd else said):
            docker("pull", f"{start(builder, patience=300).address}/{name}")

    def test_a_platform_is_chosen_from_an_index(self, docker: Docker, builder: ImageBuilder, start) -> None:
        """Docker takes the image of its own platform or of the one that it is told, under the digest of the index."""
        registry = start(builder, platforms=[AMD64, ARM64], patience=300)
        image = f"{registry.address}/editor-small"
        digest, index = registry.get("editor-small", accept=INDEX)
        configurations = {
            each["platform"]["architecture"]: registry.get("editor-small", each["digest"])[1]["config"]["digest"]
            for each in index["manifests"]
        }
        own = docker("version", "--format", "{{.Server.Arch}}").strip()
        other = "arm64" if own == "amd64" else "amd64"
        for options, architecture in [(["--platform", f"linux/{other}"], other), ([], own)]:
            registry.asked.clear()
            assert f"Digest: {digest}\n" in docker("pull", *options, image)
            asked = {blob for blob, _ in registry.asked}
            assert asked & {*configurations.values()} == {configurations[architecture]}
        assert docker(*RUN, image, "editor") == "the small editor\n"
        with pytest.raises(AssertionError, match="no matching manifest for linux/riscv64"):
            docker("pull", "--platform", "linux/riscv64", image)


def test_the_command_that_serve_prints(docker: Docker, serving, tmp_path: Path) -> None:
    """`nixery-core serve` says at its start how docker pulls from it; that works, and the image runs."""
    with serving(tmp_path, "--warm-up", "welcome") as server:
        server.wait()
        deadline = time.monotonic() + 10
        while not (commands := [line.split() for line in server.said if line.strip().startswith("docker pull ")]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        docker(*commands[0][1:])
        assert docker(*RUN, f"{server.address}/welcome", "welcome") == "Welcome to the machine.\n"
        assert server.stop() == 0


class Slow(MemoryRealiser):
    """Takes its time to find packages, as builds do."""

    def evaluate(self, *arguments, **named):
        time.sleep(2.0)
        return super().evaluate(*arguments, **named)


class TestRegistry:
    """What clients meet, with images that need no Nix."""

    @pytest.fixture
    def make(self, tmp_path: Path, require) -> Callable[..., ImageBuilder]:
        """A function that makes a builder for a package `program`, which runs, and those that it is given."""
        require("busybox")
        path = StorePath.parse("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-program-1")
        busybox = Executable(Path(shutil.which("busybox")).read_bytes())

        def builder(
            others: dict[str, MemoryPackage] | None = None, realiser: type[MemoryRealiser] = MemoryRealiser, **options
        ) -> ImageBuilder:
            others = others or {}
            # the engine knows layers from other tests
            tree = {"bin": {"busybox": busybox, "ls": SymbolicLink("busybox")}, "test": str(tmp_path).encode()}
            program = MemoryPackage(path=path, tree=tree, references=tuple(other.path for other in others.values()))
            realiser = realiser({"program": program, **others})
            return ImageBuilder(MemorySource(), open_backend(tmp_path / "images"), realiser=realiser, **options)

        return builder

    @pytest.mark.parametrize("codec", ["gzip-fast", "none"])
    def test_layers_of_other_codecs(self, docker: Docker, make, start, codec: str) -> None:
        """Docker unpacks what the codec has written."""
        image = f"{start(make(codec=codec)).address}/program"
        assert docker(*RUN, image, "ls", "/bin") == "busybox\nls\n"

    def test_as_many_layers_as_there_may_be(self, docker: Docker, make, start) -> None:
        """Docker takes 125 layers, and a container on them has the files of all."""
        others = memory_packages(*(f"p{number}" for number in range(123)))
        registry = start(make(others, budget=124, layerer=PerPathLayerer()))
        image = f"{registry.address}/program"
        docker("pull", image)
        assert len(registry.get("program")[1]["layers"]) == 125
        assert len(docker(*RUN, image, "ls", "/nix/store").split()) == 124

    def test_an_image_that_is_being_built(self, docker: Docker, make, start, asks_containerd) -> None:
        """Docker shows the message, and has the image when it is asked again."""
        image = f"{start(make(realiser=Slow), patience=0.2).address}/program"
        said = "429 Too Many Requests" if asks_containerd else "program:latest is being built; ask again"
        with pytest.raises(AssertionError, match=said):
            docker("pull", image)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(AssertionError):
                docker("pull", image)
                break
            assert time.monotonic() < deadline
        assert docker(*RUN, image, "ls", "/bin") == "busybox\nls\n"

    def test_a_password(self, docker: Docker, make, start) -> None:
        """Docker needs the credentials, and remembers them after a login."""
        address = start(make(), authorise=basic_auth({"me": "pw"}, bind=True)).address
        login = ("login", "--username", "me", "--password-stdin", address)
        with pytest.raises(AssertionError, match="401 Unauthorized"):
            docker(*login, stdin="no")
        with pytest.raises(AssertionError, match="no basic auth credentials"):
            docker("pull", f"{address}/program")
        docker(*login, stdin="pw")
        docker("pull", f"{address}/program")
        assert docker(*RUN, f"{address}/program", "ls", "/bin") == "busybox\nls\n"

    def test_a_download_that_breaks_is_continued(self, docker: Docker, make, start, asks_containerd) -> None:
        """Where a connection breaks in the middle of a layer, docker asks for the rest, and the layer is whole.

        An engine that leaves it to containerd gives up; it asks for the rest or the whole at the next pull.
        """
        size = 12_000_000
        noise = random.Random(0).randbytes(size)
        others = {"big": MemoryPackage(path=StorePath("b" * 32, "big-1"), tree={"big": noise})}
        registry = start(make(others))
        with FaultyProxy(int(registry.address.rpartition(":")[2])) as proxy:
            image = f"127.0.0.1:{proxy.port}/program"
            # when all that is small has arrived
            proxy.cut_off_after(size * 2 // 3, times=1)
            with pytest.raises(AssertionError, match="reset by peer") if asks_containerd else contextlib.nullcontext():
                docker("pull", image)
            assert proxy.faults == 1
            docker("pull", image)
        if not asks_containerd:
            (broken,) = {blob for blob, wanted in registry.asked if wanted}
            first, rest = (wanted for blob, wanted in registry.asked if blob == broken)
            assert first == ""
            assert 0 < int(rest.removeprefix("bytes=").rstrip("-")) < size
        assert (
            docker(*RUN, image, "busybox", "sha256sum", f"{others['big'].path}/big").split()[0] == Digest.of(noise).hex
        )

"""From package names to running containers, with real Nix, registries and container tools."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from nixery_core import (
    BuildEvent,
    GitRepository,
    Image,
    ImageBuilder,
    ImageSpec,
    LocalPath,
    Nix,
    NixpkgsChannel,
    open_backend,
)
from nixery_core import events as kinds
from nixery_core.compression import codec_for_media_type
from nixery_core.errors import RevisionNotFound, SourceError
from nixery_core.nix.demo import demo_path
from nixery_core.storage.backend import Backend
from nixery_core.storage.keys import blob_key

GREETING = "Hello, world!\n"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    """A storage on disk, which holds nothing half-written when the test ends."""
    backend = open_backend(tmp_path / "images")
    yield backend
    assert list(backend.list("staging/")) == []


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, require) -> Path:
    """The demo set in git: main, a branch and a tag with other greetings, and a commit that only a tag holds."""
    require("git")
    folder = tmp_path_factory.mktemp("repository") / "set"
    shutil.copytree(demo_path(), folder)
    git = functools.partial(run, "git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@example.org")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "the demo set")
    git("checkout", "-q", "-b", "polite")
    regreet(folder, "Good day")
    git("commit", "-q", "-am", "politely")
    git("tag", "-a", "v1", "-m", "annotated")
    git("checkout", "-q", "-b", "short-lived", "main")
    regreet(folder, "Ahoy")
    git("commit", "-q", "-am", "off every branch")
    git("tag", "lonely")
    git("checkout", "-q", "main")
    git("branch", "-q", "-D", "short-lived")
    return folder


def regreet(folder: Path, words: str) -> None:
    text = (folder / "default.nix").read_text()
    assert "Hello, world!" in text
    (folder / "default.nix").write_text(text.replace("Hello, world!", f"{words}, world!"))


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result


def builder(nix: Nix, backend: Backend, source=None, **options) -> ImageBuilder:
    return ImageBuilder(source or LocalPath(demo_path()), backend, realiser=nix, **options)


def archives(backend: Backend, image: Image, folder: Path) -> Iterator[tarfile.TarFile]:
    """Give the archive of each layer, unpacked, bottom layer first."""
    for layer in image.layers:
        pieces = backend.stream(blob_key(layer.descriptor.digest))
        unpacked = folder / "layer.tar"
        with unpacked.open("wb") as file:
            file.writelines(codec_for_media_type(layer.descriptor.media_type).decompress(pieces))
        with tarfile.open(unpacked) as tar:
            yield tar


def machine_of_hello(backend: Backend, image: Image, folder: Path) -> int:
    """Return e_machine of the program hello."""
    for tar in archives(backend, image, folder):
        for member in tar:
            if member.name.startswith("nix/store/") and member.name.endswith("/bin/hello"):
                return int.from_bytes(tar.extractfile(member).read()[18:20], "little")
    raise AssertionError("the image has no hello")


class TestContainers:
    @pytest.mark.parametrize("codec", ["gzip", "gzip-fast", "zstd"])
    def test_the_image_runs(self, nix, backend, tmp_path, podman, codec):
        """An image made of package names runs, and prints its greeting."""
        image = builder(nix, backend, codec=codec).build(ImageSpec.parse("hello"))
        assert image.descriptor.media_type == "application/vnd.oci.image.manifest.v1+json"
        printed = podman("run", "--rm", f"oci:{tmp_path}/images:hello:latest", "/bin/hello")
        assert printed == GREETING

    def test_real_programs_run(self, nix, backend, tmp_path, podman, debian_packages):
        """git, Python and the shell's tools work in a container that holds nothing but their closures."""
        source = LocalPath(debian_packages)
        image = builder(nix, backend, source).build(ImageSpec.parse("shell/git/python3/odd"))
        assert image.config.config.cmd == ("/bin/bash",)
        script = "\n".join(
            [
                "set -e",
                "git init -q /tmp/r && cd /tmp/r && git -c user.name=a -c user.email=b commit -q --allow-empty -m x",
                "python3 -c 'import ssl, sqlite3; print(len(ssl.create_default_context().get_ca_certs()) > 50)'",
                "/usr/bin/env bash -c 'stat -c %a /tmp'",
                "/bin/sh -c 'cat /etc/passwd' | head -1 | cut -d: -f1",
            ]
        )
        printed = podman("run", "--rm", f"oci:{tmp_path}/images:shell/git/python3/odd:latest", "bash", "-c", script)
        assert printed.split() == ["True", "1777", "root"]

    def test_an_ordinary_user_runs_it(self, nix, backend, tmp_path, podman, debian_packages):
        """The image's user exists, and owns a home that it can write to."""
        spec = ImageSpec.parse("shell", config=attrs.evolve(ImageSpec.parse("shell").config, user="app"))
        builder(nix, backend, LocalPath(debian_packages)).build(spec)
        script = "id -un; cd ~ && pwd && echo x > y && stat -c %U y"
        printed = podman("run", "--rm", f"oci:{tmp_path}/images:shell:latest", "sh", "-c", script)
        assert printed.split() == ["app", "/home/app", "app"]

    def test_umoci_unpacks_it(self, nix, backend, tmp_path, require):
        """Umoci finds the storage a valid layout, and the unpacked files are the store's."""
        require("umoci")
        builder(nix, backend).build(ImageSpec.parse("hello"))
        run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/images:hello:latest", tmp_path / "bundle")
        target = str((tmp_path / "bundle/rootfs/bin/hello").readlink())
        assert (tmp_path / "bundle/rootfs" / target.lstrip("/")).is_file()

    @pytest.mark.parametrize("codec", ["gzip", "gzip-fast", "zstd"])
    def test_a_registry_takes_and_returns_it(self, nix, backend, tmp_path, registry, codec):
        """Pushed to a registry and pulled again, every blob has the same digest."""
        image = builder(nix, backend, codec=codec).build(ImageSpec.parse("hello"))
        remote = f"docker://{registry}/lab/hello:v1"
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/images:hello:latest", remote)
        run("skopeo", "copy", "--src-tls-verify=false", remote, f"oci:{tmp_path}/back:hello")
        pulled = {path.name for path in (tmp_path / "back/blobs/sha256").iterdir()}
        stored = {path.name for path in (tmp_path / "images/blobs/sha256").iterdir()}
        assert pulled == stored
        assert image.descriptor.digest.hex in pulled

    def test_another_platform_is_resolved(self, nix, backend, tmp_path):
        """An arm64 name makes an arm64 image: its configuration and its programs say so."""
        image = builder(nix, backend).build(ImageSpec.parse("arm64/hello"))
        assert (image.config.os, image.config.architecture) == ("linux", "arm64")
        assert machine_of_hello(backend, image, tmp_path) == 183
        native = builder(nix, backend).build(ImageSpec.parse("hello"))
        assert native.descriptor.digest != image.descriptor.digest
        assert machine_of_hello(backend, native, tmp_path) == 62

    def test_the_layers_are_exactly_the_closure(self, nix, backend, tmp_path, debian_packages):
        """Every path of the closure is in one layer, no other path is in any, and the rest is the customisation."""
        maker = builder(nix, backend, LocalPath(debian_packages), budget=5)
        spec = ImageSpec.parse("shell/python3")
        closure = {info.path.base for info in maker.plan(spec).closure}
        *layers, top = [tar.getnames() for tar in archives(backend, maker.build(spec), tmp_path)]
        assert len(layers) <= 5
        roots = [name.split("/")[2] for names in layers for name in names if name.count("/") == 2]
        assert sorted(roots) == sorted(closure)
        assert all(name in ("nix", "nix/store") or name.startswith("nix/store/") for names in layers for name in names)
        assert not any(name.startswith("nix") for name in top)


class TestSources:
    @pytest.mark.parametrize(
        ("tag", "greeting"),
        [("latest", "Hello"), ("main", "Hello"), ("polite", "Good day"), ("v1", "Good day"), ("lonely", "Ahoy")],
    )
    def test_branches_and_tags_are_image_tags(self, nix, backend, tmp_path, podman, repository, tag, greeting):
        """The tag of an image chooses the branch or tag of the repository."""
        image = builder(nix, backend, GitRepository(str(repository))).build(ImageSpec.parse("hello", tag=tag))
        printed = podman("run", "--rm", f"oci:{tmp_path}/images:hello:{tag}", "/bin/hello")
        assert printed == f"{greeting}, world!\n"
        ref = "main" if tag == "latest" else tag
        commit = run("git", "-C", repository, "rev-parse", f"{ref}^{{commit}}").stdout.strip()
        assert image.config.config.labels["org.opencontainers.image.revision"] == commit

    @pytest.mark.parametrize("ref", ["main", "polite", "lonely"])
    def test_a_commit_is_an_image_tag(self, nix, backend, repository, ref):
        """A full commit makes the image of that commit, also one that no branch holds."""
        commit = run("git", "-C", repository, "rev-parse", f"{ref}^{{commit}}").stdout.strip()
        source = GitRepository(str(repository))
        image = builder(nix, backend, source).build(ImageSpec.parse("hello", tag=commit))
        named = builder(nix, backend, source).build(ImageSpec.parse("hello", tag=ref))
        assert image.descriptor == named.descriptor
        assert named.cached

    def test_a_commit_that_is_not_there_is_told(self, nix, backend, repository):
        """A commit that the repository does not have is no evaluation error."""
        with pytest.raises(RevisionNotFound):
            builder(nix, backend, GitRepository(str(repository))).build(ImageSpec.parse("hello", tag="0" * 40))

    def test_a_pinned_image_is_found_without_nix(self, nix, backend, repository):
        """The second build of a pinned source calls no Nix and touches no layer."""
        source = GitRepository(str(repository))
        first = builder(nix, backend, source).build(ImageSpec.parse("hello"))
        seen: list[BuildEvent] = []
        without = attrs.evolve(nix, binaries=Path("/nowhere"))
        second = builder(without, backend, source, on_event=seen.append).build(ImageSpec.parse("hello"))
        assert second.descriptor == first.descriptor
        assert [type(event) for event in seen] == [kinds.SourceResolved, kinds.ManifestCached, kinds.ImageStored]

    def test_a_moving_image_touches_no_layer_again(self, nix, backend):
        """The second build of a folder looks names up again and writes nothing."""
        first = builder(nix, backend).build(ImageSpec.parse("hello"))
        seen: list[BuildEvent] = []
        second = builder(nix, backend, on_event=seen.append).build(ImageSpec.parse("hello"))
        assert second.descriptor == first.descriptor
        assert not any(isinstance(event, (kinds.LayerStarted, kinds.NixBuildStarted)) for event in seen)

    def test_a_channel_is_its_commits_archive(self, nix, backend, tmp_path, repository):
        """A channel served on loopback is resolved to its commit, whose archive Nix reads."""
        commit = run("git", "-C", repository, "rev-parse", "polite").stdout.strip()
        web = tmp_path / "web"
        (web / "nixos-test").mkdir(parents=True)
        (web / "nixos-test/git-revision").write_text(commit)
        archive = ("archive", "--prefix=nixpkgs/", "-o", web / f"{commit}.tar.gz", "polite")
        run("git", "-C", repository, *archive)
        handler = functools.partial(_Quiet, directory=str(web))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                url = f"http://127.0.0.1:{server.server_port}"
                channel = functools.partial(NixpkgsChannel, channels_url=url, archive_url=url + "/{revision}.tar.gz")
                image = builder(nix, backend, channel("nixos-test")).build(ImageSpec.parse("hello"))
                same = builder(nix, backend, channel(commit)).build(ImageSpec.parse("hello"))
                with pytest.raises(RevisionNotFound):
                    builder(nix, backend, channel("nixos-none")).build(ImageSpec.parse("hello"))
                with pytest.raises(SourceError):
                    builder(nix, backend, channel("0" * 40)).build(ImageSpec.parse("hello"))
            finally:
                server.shutdown()
                thread.join()
        assert image.revision == commit
        assert same.descriptor == image.descriptor


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class TestReproducibility:
    # the user changes after the imports, because another user may not be let at this one's Python
    AS_SOMEBODY = """\
import difflib, os, sys
from nixery_core.cli import main
umask, user = int(sys.argv[1], 8), int(sys.argv[2])
if user != os.getuid():
    os.setgroups([]); os.setgid(user); os.setuid(user)
os.umask(umask)
sys.exit(main(["demo", "hello", "--dir", "demo", "--json", "--progress", "none"]))
"""

    def test_stores_users_umasks_and_locales_do_not_matter(self, tmp_path, nix_binaries):
        """Three machines' worth of differences, and every byte of the image is the same."""
        documents = []
        other_user = 65534 if os.geteuid() == 0 else os.geteuid()
        for number, (umask, locale, user) in enumerate(
            [("022", "C.UTF-8", os.geteuid()), ("077", "POSIX", os.geteuid()), ("027", "de_DE", other_user)]
        ):
            folder = tmp_path / f"machine {number}"
            folder.mkdir()
            if user != os.geteuid():
                os.chown(folder, user, user)
                for parent in [tmp_path, *tmp_path.parents[:2]]:
                    parent.chmod(0o711)
            environment = {
                "PATH": os.pathsep.join(filter(None, [str(nix_binaries or ""), os.environ["PATH"]])),
                "HOME": str(folder),
                "LC_ALL": locale,
                "TMPDIR": str(folder),
            }
            command = [sys.executable, "-c", self.AS_SOMEBODY, umask, user]
            documents.append(json.loads(run(*command, cwd=folder, env=environment).stdout))
        assert documents[0] == documents[1] == documents[2]
        assert len(documents[0]["layers"]) == 5


class TestInterruption:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_build_leaves_nothing(self, tmp_path, nix, how):
        """Ctrl-C and SIGTERM while a package is being built: no child, no staging file, an exit code that says so."""
        command = [
            *(sys.executable, "-m", "nixery_core", "build", "sleeps", "--source", "demo"),
            *("--store", str(tmp_path / "images"), "--nix-store", str(nix.store)),
            *(word for option in nix.options.items() for word in ("--nix-option", *option)),
        ]
        environment = {**os.environ, **nix.environment, "MARKER": str(tmp_path)}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("building"):
                    break
            time.sleep(0.5)
            process.send_signal(how)
            rest = process.stderr.read()
            assert process.wait(timeout=30) == 128 + how
        assert "nothing half-written was left" in rest
        assert not (tmp_path / "images").exists()
        marker = f"MARKER={tmp_path}".encode()
        assert not [entry for entry in Path("/proc").iterdir() if marker in _environment_of(entry)]


def _environment_of(entry: Path) -> bytes:
    with contextlib.suppress(OSError):
        return (entry / "environ").read_bytes()
    return b""

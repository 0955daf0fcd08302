"""Images from a binary cache are those from Nix; their layers are written where there is no Nix at all."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest

from nixery_core import BinaryCacheSource, Image, ImageBuilder, ImageSpec, LocalPath, Nix, NixeryError, open_backend
from nixery_core.demo import write_demo_cache
from nixery_core.errors import StoreReadError, WorkerError
from nixery_core.events import LayerStarted
from nixery_core.index.document import index_bytes
from nixery_core.index.index_file import IndexFile
from nixery_core.model.names import IMPLIED_PACKAGES
from nixery_core.model.platform import AMD64
from nixery_core.nix.demo import demo_path
from nixery_core.stores.binary_cache import BinaryCache

DEMO = ["hello", "welcome", "lookup", "toolbox", "editor-small", "editor-large", "upper", "demopackages.inner"]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run_nix(nix: Nix, *words: str) -> str:
    settings = [word for name, value in nix.options.items() for word in ("--option", name, value)]
    tool, *rest = words
    program = tool if nix.binaries is None else str(nix.binaries / tool)
    command = [program, *rest, *settings, "--store", str(nix.store)]
    if tool == "nix":
        command += ["--extra-experimental-features", "nix-command"]
    environment = {**os.environ, **nix.environment}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@attrs.frozen
class Copied:
    """A package set that Nix built, and a binary cache that Nix copied it to."""

    builder: Callable[[Path], ImageBuilder]
    """Makes a builder that has Nix."""
    folder: Path
    index: Path
    key: str

    def source(self, url: str | None = None) -> BinaryCacheSource:
        return BinaryCacheSource(
            BinaryCache(url or str(self.folder), trusted_keys=self.key), IndexFile(str(self.index))
        )


def copied(nix: Nix, packages: Path, names: list[str], folder: Path, compression: str) -> Copied:
    """Build *names*, and have Nix copy them to a signed binary cache with an index beside it."""
    folder.mkdir()
    secret, public = folder / "secret.key", folder / "public.key"
    program = "nix-store" if nix.binaries is None else str(nix.binaries / "nix-store")
    generate = [program, "--generate-binary-cache-key", "test-1", str(secret), str(public)]
    subprocess.run(generate, check=True, env={**os.environ, **nix.environment})
    pin = LocalPath(packages).pin("latest")
    resolved = nix.evaluate(pin, names, IMPLIED_PACKAGES, AMD64)
    with nix.realise(resolved):
        roots = [str(output.path) for package in resolved for output in package.outputs]
        target = f"file://{folder / 'cache'}?compression={compression}&secret-key={secret}"
        # a space in the path, which nix copy wants written out
        run_nix(nix, "nix", "copy", "--to", target.replace(" ", "%20"), *roots)
    (folder / "index.json").write_bytes(index_bytes({AMD64.system: dict(nix.index(pin, AMD64))}))
    return Copied(
        builder=lambda images: ImageBuilder(LocalPath(packages), open_backend(images), realiser=nix),
        folder=folder / "cache",
        index=folder / "index.json",
        key=public.read_text(),
    )


@pytest.fixture(scope="module")
def demo(nix: Nix, tmp_path_factory: pytest.TempPathFactory) -> Copied:
    folder = tmp_path_factory.mktemp("copied") / "demo"
    return copied(nix, demo_path(), DEMO, folder, "xz")


def compared(copied_set: Copied, spec: ImageSpec, folder: Path, **options: object) -> tuple[Image, Image]:
    """Return the image as Nix makes it and as the cache does, in two storages."""
    by_nix = copied_set.builder(folder / "by-nix").build(spec)
    backend = open_backend(folder / "by-cache")
    by_cache = ImageBuilder(copied_set.source(), backend, **options).build(spec)  # type: ignore[arg-type]
    return by_nix, by_cache


def same(by_nix: Image, by_cache: Image) -> bool:
    """Whether two images have the same layers and the same configuration, but for where they came from."""

    def without_provenance(image: Image) -> object:
        config = attrs.evolve(image.config.config, labels={})
        return attrs.evolve(image.config, config=config)

    return by_nix.layers == by_cache.layers and without_provenance(by_nix) == without_provenance(by_cache)


class TestEqualImages:
    @pytest.mark.parametrize("names", [["hello"], DEMO], ids=["one", "all"])
    def test_the_demo(self, demo: Copied, tmp_path: Path, names: list[str]) -> None:
        """An image made by Nix and one made of what Nix copied to a cache are equal, to the last byte of each layer."""
        by_nix, by_cache = compared(demo, ImageSpec(packages=names, name="image"), tmp_path)
        assert same(by_nix, by_cache)

    def test_the_manifests_are_equal_where_there_is_no_provenance(self, demo: Copied, tmp_path: Path) -> None:
        """Where neither source has a revision to record, the manifest is the same document."""

        class Moving:
            """The same source, of which nobody knows the revision."""

            def __init__(self, source: BinaryCacheSource) -> None:
                self.inner = source

            def pin(self, tag: str):
                return attrs.evolve(self.inner.pin(tag), revision=None)

        source = demo.source()
        source.pin("latest")

        @attrs.frozen
        class Realiser:
            inner: object
            id: str = "cache"

            def evaluate(self, pin, *words, **options):
                return self.inner.evaluate(source.pin("latest"), *words, **options)  # type: ignore[attr-defined]

            def realise(self, *words, **options):
                return self.inner.realise(*words, **options)  # type: ignore[attr-defined]

        spec = ImageSpec(packages=DEMO, name="image")
        by_nix = demo.builder(tmp_path / "by-nix").build(spec)
        builder = ImageBuilder(Moving(source), open_backend(tmp_path / "c"), realiser=Realiser(source.realiser()))
        assert builder.build(spec).descriptor == by_nix.descriptor

    def test_real_programs_over_http(self, nix: Nix, debian_packages: Path, tmp_path: Path) -> None:
        """A shell with curl and names that are hard to archive, from a web server, is the image that Nix makes."""
        names = ["bash", "coreutils", "curl", "odd"]
        real = copied(nix, debian_packages, names, tmp_path / "real", "zstd")
        spec = ImageSpec(packages=names, name="real")
        by_nix = real.builder(tmp_path / "by-nix").build(spec)
        with served(real.folder) as url:
            by_cache = ImageBuilder(real.source(url), open_backend(tmp_path / "by-cache")).build(spec)
        assert same(by_nix, by_cache)

    def test_the_demo_cache_is_one_for_nix(self, nix: Nix, tmp_path: Path) -> None:
        """Nix reads the cache that the demo writes, and takes its paths without a key."""
        cache = write_demo_cache(tmp_path / "cache")
        (hello,) = IndexFile(str(cache.index)).snapshot("latest").entry("hello", AMD64.system).outputs.values()
        url = cache.folder.as_uri()
        run_nix(nix, "nix", "copy", "--from", url, str(hello))
        known = json.loads(run_nix(nix, "nix", "path-info", "--json", "--recursive", str(hello)))
        rows = known if isinstance(known, list) else list(known.values())
        assert len(rows) == 4
        assert all(row["ca"].startswith("fixed:r:") for row in rows)

    def test_the_demo_runs(self, tmp_path: Path, podman: Callable[..., str]) -> None:
        """The image that Python alone has made says hello in a container."""
        source = tmp_path / "demo"
        command = [sys.executable, "-m", "nixery_core", "demo", "--dir", str(source), "--progress", "none"]
        subprocess.run(command, check=True, env={"PATH": str(tmp_path)}, capture_output=True)
        image = f"oci:{source / 'images'}:hello:latest"
        assert podman("run", "--rm", image, "/bin/hello") == "Hello, world!\n"


@pytest.fixture
def without_nix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PATH without Nix, for the workers of a test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    assert shutil.which("nix") is None
    return folder


def where_nix_is() -> tuple[str | None, str]:
    return shutil.which("nix"), os.environ["PATH"]


SPECS = [ImageSpec(packages=names) for names in (["hello"], ["hello", "toolbox"], ["lookup", "welcome"], ["upper"])]


def batch_is_right(demo: Copied, folder: Path, executor: concurrent.futures.Executor, url: str) -> None:
    """Build a batch with *executor*; compare it with images of one process, and count what was written."""
    started: list[str] = []

    def follow(event: object) -> None:
        inner = getattr(event, "event", event)
        if isinstance(inner, LayerStarted):
            started.append(inner.layer_key)

    builder = ImageBuilder(demo.source(url), open_backend(folder / "workers"), executor=executor)
    results = {result.index: result for result in builder.build_many(SPECS, on_event=follow)}
    alone = ImageBuilder(demo.source(), open_backend(folder / "alone"))
    for index, spec in enumerate(SPECS):
        assert results[index].error is None
        assert results[index].image == alone.build(spec)
    assert len(started) == len(set(started))


def breaks(demo: Copied, folder: Path, executor: concurrent.futures.Executor) -> NixeryError:
    """Return the error of a batch whose cache lost an archive after it was asked for its closure."""
    damaged = folder / "damaged"
    shutil.copytree(demo.folder, damaged)
    for archive in (damaged / "nar").iterdir():
        archive.write_bytes(b"damaged")
    source = attrs.evolve(demo.source(), caches=BinaryCache(str(damaged), trusted_keys=demo.key))
    # what the customisation layer needs is there, what the workers need is not
    with pytest.raises(NixeryError) as caught:
        ImageBuilder(source, open_backend(folder / "broken"), executor=executor).build(SPECS[0])
    return caught.value


class TestWorkers:
    def test_a_process_pool(self, demo: Copied, tmp_path: Path, without_nix: Path) -> None:
        """Processes that share nothing with us write the layers from the cache, each once."""
        context = multiprocessing.get_context("spawn")
        with served(demo.folder) as url, concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            assert pool.submit(where_nix_is).result() == (None, str(without_nix))
            batch_is_right(demo, tmp_path, pool, url)
            assert isinstance(breaks(demo, tmp_path, pool), StoreReadError)

    def test_dask_workers(self, demo: Copied, tmp_path: Path, without_nix: Path) -> None:
        """Two workers of Dask, processes without Nix in their PATH, do the same."""
        distributed = pytest.importorskip("distributed")
        import dask

        settings = {"distributed.admin.log-format": "%(message)s", "distributed.scheduler.allowed-failures": 0}
        with (
            dask.config.set(settings),
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=50,
                local_directory=str(tmp_path / "dask"),
            ) as cluster,
            distributed.Client(cluster) as client,
            served(demo.folder) as url,
        ):
            found = client.run(where_nix_is)
            assert list(found.values()) == [(None, str(without_nix))] * 2
            executor = client.get_executor(pure=False)
            batch_is_right(demo, tmp_path, executor, url)
            assert isinstance(breaks(demo, tmp_path, executor), StoreReadError)
            # a worker that is killed with its job is told, when no other can take it
            builder = ImageBuilder(Killing(demo.source()), open_backend(tmp_path / "killed"), executor=executor)
            with pytest.raises(WorkerError, match="KilledWorker"):
                builder.build(SPECS[0])


@attrs.frozen
class Killing:
    """A source whose content ends the worker that reads it."""

    inner: BinaryCacheSource

    def pin(self, tag: str):
        return self.inner.pin(tag)

    def realiser(self):
        return KillingRealiser(self.inner.realiser())


@attrs.frozen
class KillingRealiser:
    inner: object
    id: str = "killing"

    def evaluate(self, *words, **options):
        return self.inner.evaluate(*words, **options)  # type: ignore[attr-defined]

    @contextmanager
    def realise(self, *words, **options):
        with self.inner.realise(*words, **options) as found:  # type: ignore[attr-defined]
            yield attrs.evolve(found, reader=KillingReader(found.reader, os.getpid()))


@attrs.frozen
class KillingReader:
    inner: object
    home: int

    def entries(self, path):
        if os.getpid() != self.home:
            os._exit(9)
        return self.inner.entries(path)  # type: ignore[attr-defined]

    def listing(self, path):
        return self.inner.listing(path)  # type: ignore[attr-defined]

    def read_head(self, *words):
        return self.inner.read_head(*words)  # type: ignore[attr-defined]

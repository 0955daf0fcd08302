"""Binary caches that real Nix made: images straight from them are those that come from Nix's own store."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from nixery_core import Cancellation, ImageBuilder, ImageSpec, LocalPath, Nix, StorePath, open_backend
from nixery_core.errors import StoreReadError, UntrustedPath
from nixery_core.events import EventCallback, ignore_events
from nixery_core.layer_writer import BuiltLayer, LayerJob, build_layer
from nixery_core.model.closure import Closure
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import AMD64, Platform
from nixery_core.sources import Pin
from nixery_core.stores.binary_cache import BinaryCache
from nixery_core.stores.cache_closure import cached_closure
from nixery_core.stores.cache_reader import BinaryCacheReader
from nixery_core.stores.reader import StoreReader
from nixery_core.stores.realiser import Realisation

PACKAGES = ("aFile", "bash", "cacert", "coreutils", "hello", "iana-etc", "odd")
COMPRESSIONS = ("none", "xz", "zstd", "bzip2", "gzip", "br")


@attrs.frozen
class Built:
    """The packages in a real store."""

    nix: Nix
    packages: tuple[ResolvedPackage, ...]
    closure: Closure
    reader: StoreReader

    def path(self, name: str) -> StorePath:
        return next(package.outputs[0].path for package in self.packages if package.attribute == name)

    def program(self, name: str) -> str:
        return str(self.nix.binaries / name) if self.nix.binaries else name

    def run(self, *words: str) -> None:
        """Call the command nix on the same store."""
        options = [word for name, value in self.nix.options.items() for word in ("--option", name, value)]
        command = [
            self.program("nix"),
            "--extra-experimental-features",
            "nix-command",
            "--store",
            str(self.nix.store),
            *options,
        ]
        environment = {**os.environ, **self.nix.environment}
        result = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    def copy(self, folder: Path, paths: Sequence[StorePath] = (), **settings: str) -> Path:
        """Make a binary cache of *paths*, or of everything."""
        query = "&".join(f"{name.replace('_', '-')}={value}" for name, value in settings.items())
        wanted = [str(path) for path in paths or [info.path for info in self.closure]]
        self.run("copy", "--no-check-sigs", "--to", f"file://{folder}?{query}", *wanted)
        return folder


@pytest.fixture(scope="module")
def built(nix: Nix, debian_packages: Path) -> Iterator[Built]:
    pin = LocalPath(debian_packages).pin("latest")
    packages = nix.evaluate(pin, PACKAGES, [], AMD64)
    with nix.realise(packages) as realisation:
        yield Built(nix, packages, realisation.closure, realisation.reader)


@pytest.fixture(scope="module")
def keys(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Secret keys that Nix made, by their names; the public half is beside each."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("lab-1", "lab-2"):
        files = [str(folder / name), str(folder / f"{name}.pub")]
        subprocess.run([built.program("nix-store"), "--generate-binary-cache-key", name, *files], check=True)
    return {name: folder / name for name in ("lab-1", "lab-2")}


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A plain web server, that of Python, which knows nothing of Nix."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def layer(paths: Sequence[StorePath], reader: StoreReader, folder: Path) -> BuiltLayer:
    backend = open_backend(folder)
    return build_layer(
        LayerJob(paths=tuple(paths), nar_size=1, layer_key="0" * 64, reader=reader, backend=backend.ref, codec="gzip:1")
    )


class CacheRealiser:
    """Looks names up with Nix, and takes closure and content from a binary cache."""

    def __init__(self, nix: Nix, reader: BinaryCacheReader) -> None:
        self._nix = nix
        self._reader = reader
        self.id = nix.id

    def evaluate(
        self,
        pin: Pin,
        packages: Sequence[str],
        optional: Sequence[str],
        platform: Platform,
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> tuple[ResolvedPackage, ...]:
        return self._nix.evaluate(pin, packages, optional, platform, on_event=on_event, cancellation=cancellation)

    @contextlib.contextmanager
    def realise(
        self,
        packages: Sequence[ResolvedPackage],
        *,
        on_event: EventCallback = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Realisation]:
        roots = [output.path for package in packages for output in package.outputs]
        closure = cached_closure(self._reader.caches, roots, cancellation=cancellation)
        yield Realisation(closure=closure, reader=self._reader)


class TestCachesOfNix:
    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_the_same_layers_as_from_the_store(
        self, built: Built, keys: Mapping[str, Path], tmp_path: Path, compression: str
    ) -> None:
        """For each compression, a path from the cache gives the layer of the same path in the store: same digest."""
        # xz and Brotli take their time
        names = ("odd", "aFile") if compression in ("xz", "br") else ("odd", "aFile", "hello")
        paths = [built.path(name) for name in names]
        folder = built.copy(tmp_path / "cache", paths, compression=compression, secret_key=str(keys["lab-1"]))
        cache = BinaryCache(str(folder), public(keys["lab-1"]))
        for path in paths:
            info = cache.narinfo(path)
            assert info is not None
            assert info.compression == compression
            from_cache = layer([path], BinaryCacheReader(cache), tmp_path / "a")
            assert from_cache == layer([path], built.reader, tmp_path / "b")

    @pytest.mark.parametrize("how", ["directory", "directory without listings", "web server"])
    def test_the_same_image_as_from_nix(
        self, built: Built, keys: Mapping[str, Path], debian_packages: Path, tmp_path: Path, how: str
    ) -> None:
        """The whole image, with its links and system files, has the digest of the image that Nix gives."""
        folder = built.copy(
            tmp_path / "cache", compression="zstd", secret_key=str(keys["lab-1"]), write_nar_listing="true"
        )
        spec, source = ImageSpec.parse("shell/bash/coreutils/hello/odd/afile"), LocalPath(debian_packages)
        expected = ImageBuilder(source, open_backend(tmp_path / "nix"), realiser=built.nix).build(spec)
        with served(folder) if how == "web server" else contextlib.nullcontext(str(folder)) as url:
            cache = BinaryCache(url, public(keys["lab-1"]))
            reader = BinaryCacheReader(cache, listings="without" not in how)
            realiser = CacheRealiser(built.nix, reader)
            image = ImageBuilder(source, open_backend(tmp_path / "cache image"), realiser=realiser).build(spec)
        assert image.descriptor == expected.descriptor
        assert image.layers == expected.layers

    def test_the_same_closure_as_from_nix(self, built: Built, keys: Mapping[str, Path], tmp_path: Path) -> None:
        """Paths, sizes, hashes and references are those that Nix tells."""
        folder = built.copy(tmp_path / "cache", compression="none", secret_key=str(keys["lab-1"]))
        with served(folder) as url:
            closure = cached_closure(BinaryCache(url, public(keys["lab-1"])), built.closure.roots)
        assert closure == built.closure

    def test_listings_of_nix(self, built: Built, tmp_path: Path) -> None:
        """The .ls files that Nix writes give the entries of the store, hostile names included, without an archive."""
        folder = built.copy(tmp_path / "cache", compression="none", write_nar_listing="true")
        for archive in (folder / "nar").iterdir():
            archive.unlink()
        reader = BinaryCacheReader(BinaryCache(str(folder), allow_unsigned=True))
        for name in PACKAGES:
            path = built.path(name)
            assert list(reader.listing(path)) == list(built.reader.listing(path))

    def test_beginnings_of_files(self, built: Built, tmp_path: Path) -> None:
        """Programs begin in the cache as they do in the store."""
        folder = built.copy(tmp_path / "cache", compression="zstd")
        reader = BinaryCacheReader(BinaryCache(str(folder), allow_unsigned=True))
        for name, file in (("bash", b"bin/bash"), ("odd", b"a b/c'd\"e"), ("aFile", b"")):
            path = built.path(name)
            assert reader.read_head(path, file, 256) == built.reader.read_head(path, file, 256)


class TestKeysOfNix:
    def test_signatures(self, built: Built, keys: Mapping[str, Path], tmp_path: Path) -> None:
        """What Nix signed is taken with the right public key, and with no other."""
        folder = built.copy(tmp_path / "cache", compression="none", secret_key=str(keys["lab-1"]))
        path = built.path("hello")
        right, wrong = public(keys["lab-1"]), public(keys["lab-2"])
        assert BinaryCache(str(folder), right).narinfo(path) is not None
        assert BinaryCache(str(folder), [wrong, right]).narinfo(path) is not None
        impostor = right.partition(":")[0] + ":" + wrong.partition(":")[2]
        for keys_ in (wrong, impostor, "cache.nixos.org-1"):
            with pytest.raises(UntrustedPath):
                BinaryCache(str(folder), keys_).narinfo(path)

    def test_rotation(self, built: Built, keys: Mapping[str, Path], tmp_path: Path) -> None:
        """Paths signed before and after a change of keys are both taken by whoever trusts both keys."""
        old, new = built.path("hello"), built.path("odd")
        folder = tmp_path / "cache"
        built.copy(folder, [new], compression="none", secret_key=str(keys["lab-2"]))
        both = f"{public(keys['lab-1'])} {public(keys['lab-2'])}"
        built.copy(folder, [old], compression="none", secret_key=str(keys["lab-1"]))
        cache = BinaryCache(str(folder), both)
        assert cache.narinfo(old) is not None
        assert cache.narinfo(new) is not None
        with pytest.raises(UntrustedPath):
            BinaryCache(str(folder), public(keys["lab-2"])).narinfo(old)

    def test_unsigned(self, built: Built, tmp_path: Path) -> None:
        """A cache without signatures is used by whoever says so, and by nobody else."""
        folder = built.copy(tmp_path / "cache", compression="none")
        path = built.path("hello")
        with pytest.raises(UntrustedPath, match="is not signed"):
            cached_closure(BinaryCache(str(folder)), [path])
        assert path in cached_closure(BinaryCache(str(folder), allow_unsigned=True), [path])

    def test_content_addresses(self, built: Built, tmp_path: Path) -> None:
        """Files, trees and texts that Nix added under their content need no signature; what is forged is refused."""
        source = tmp_path / "source"
        source.mkdir()
        (source / "file").write_bytes(b"content")
        texts = 'derivation { name = "x"; system = "s"; builder = "/b"; args = [ (builtins.toFile "u" "see ${t}") ]; }'
        expression = f'let t = builtins.toFile "t" "plain"; in {texts}'
        common = ["--store", str(built.nix.store)]
        environment = {**os.environ, **built.nix.environment}

        def output(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        flat = output(built.program("nix-store"), *common, "--add-fixed", "sha256", str(source / "file"))
        tree = output(built.program("nix-store"), *common, "--add-fixed", "--recursive", "sha256", str(source))
        derivation = output(built.program("nix-instantiate"), *common, "-E", expression)
        text = output(built.program("nix-store"), *common, "-q", "--references", derivation)
        paths = [StorePath.parse(path) for path in (flat, tree, text)]
        folder = built.copy(tmp_path / "cache", paths, compression="xz")
        cache = BinaryCache(str(folder))
        closure = cached_closure(cache, paths)
        assert len(closure) == 4
        for info in closure:
            assert layer([info.path], BinaryCacheReader(cache), tmp_path / "images") == layer(
                [info.path], built.reader, tmp_path / "images"
            )
        forged = folder / f"{paths[0].hash}.narinfo"
        forged.write_text(forged.read_text().replace("fixed:sha256:", "fixed:r:sha256:"))
        with pytest.raises(UntrustedPath):
            BinaryCache(str(folder)).narinfo(paths[0])


class TestDamage:
    def test_one_bit_of_an_archive(self, built: Built, keys: Mapping[str, Path], tmp_path: Path) -> None:
        """A changed archive fails the image, and the storage holds no name and no blob of it."""
        folder = built.copy(tmp_path / "cache", compression="none", secret_key=str(keys["lab-1"]))
        cache = BinaryCache(str(folder), public(keys["lab-1"]))
        path = built.path("bash")
        info = cache.narinfo(path)
        assert info is not None
        archive = folder / info.url
        data = bytearray(archive.read_bytes())
        data[data.index(b"\x7fELF") + 1000] ^= 1
        archive.chmod(0o644)
        archive.write_bytes(data)
        with pytest.raises(StoreReadError, match=hashlib.sha256(data).hexdigest()):
            layer([path], BinaryCacheReader(cache), tmp_path / "images")
        assert not [found.key for found in open_backend(tmp_path / "images").list("blobs/")]

"""What other tools make of our layers: GNU tar, gzip, pigz, zstd, skopeo, umoci."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixery_core.archive import store_entries
from nixery_core.compression import Codec, GzipCodec, codec, codec_for_media_type
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import BuiltLayer, LayerWriter
from nixery_core.model.oci import LAYER_GZIP, Descriptor, ImageConfig, Manifest, RootFS
from nixery_core.model.storepath import StorePath
from nixery_core.storage.blobs import put_blob
from nixery_core.storage.keys import blob_key
from nixery_core.storage.layout import publish_ref
from nixery_core.storage.local import LocalBackend
from nixery_core.stores.reader import EntryType
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink
from nixery_core.testing.trees import write_store

PATH = StorePath("0" * 32, "hello-" + "1" * 200)
TREE = {
    "bin": {"hello": Executable(b"#!/bin/sh\necho hello\n")},
    "empty": {},
    "large": b"".join(b"%d\n" % number for number in range(700_000)),
    "lib": SymbolicLink("/nix/store/" + "t" * 150),
    "link": SymbolicLink("bin/hello"),
    "ü": b"umlaut",
    b"raw \xff\xfe": b"not UTF-8",
    b"raw long \xff" * 12: SymbolicLink(b"\xfe" * 120),
    "n" * 150: {"deep": {"d" * 120: {"e" * 120: b"deep"}}},
    "p" * 99: {"q": b"", "r" * 90: b"at the edge"},
    "new\nline": b"odd",
}
STORE = MemoryStore({PATH: TREE})


@pytest.fixture(scope="module", params=["gzip", "gzip:1", "gzip-fast", "gzip-fast:3", "zstd", "none"])
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalBackend, BuiltLayer]:
    """A layer of odd files in a storage."""
    backend = LocalBackend(tmp_path_factory.mktemp("storage") / "s")
    with ThreadPoolExecutor(2) as pool:
        writer = LayerWriter(backend, codec(request.param), Helpers(pool, 2))
        return backend, writer.write(store_entries(STORE.trees, STORE), layer_key="k")


def blob(layer: tuple[LocalBackend, BuiltLayer]) -> Path:
    backend, built = layer
    return backend.root / blob_key(built.descriptor.digest)


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"}).stdout


def tree_of(where: bytes) -> Iterator[tuple[bytes, str, bytes]]:
    for name in sorted(os.listdir(where)):  # noqa: PTH208 - the names are bytes
        path = where + b"/" + name
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            yield name, "link", os.readlink(path)  # noqa: PTH115
        elif stat.S_ISDIR(mode):
            yield name, oct(stat.S_IMODE(mode)), b"directory"
            for below, kind, content in tree_of(path):
                yield name + b"/" + below, kind, content
        else:
            with open(path, "rb") as file:  # noqa: PTH123
                yield name, oct(stat.S_IMODE(mode)), file.read()


def expected() -> list[tuple[bytes, str, bytes]]:
    found = []
    for entry in STORE.entries(PATH):
        if not entry.name:
            continue
        if entry.target:
            found.append((entry.name, "link", entry.target))
        elif entry.type is EntryType.REGULAR:
            found.append((entry.name, "0o555" if entry.executable else "0o444", entry.read()))
        else:
            found.append((entry.name, "0o555", b"directory"))
    return found


def check(root: Path) -> None:
    where = os.fsencode(root / "nix" / "store" / PATH.base)
    assert list(tree_of(where)) == expected()


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Path]:
    """A directory that can be removed again, whatever modes are in it."""
    root = tmp_path / "unpacked"
    root.mkdir()
    yield root
    subprocess.run(["chmod", "-R", "u+w", root], check=True)


def test_gnu_tar_reads_it(layer: tuple[LocalBackend, BuiltLayer], unpacked: Path, require: Callable[..., None]) -> None:
    """GNU tar unpacks every name, mode, content and target, with no complaint but one.

    It does not know the keyword by which POSIX and Python mark names that are not UTF-8, and takes them
    as they are.
    """
    require("tar")
    done = subprocess.run(
        ["tar", "--extract", "--preserve-permissions", "--file", "-", "--directory", unpacked],
        input=b"".join(codec_of(layer).decompress([blob(layer).read_bytes()])),
        capture_output=True,
        check=False,
    )
    complaints = {line for line in done.stderr.splitlines() if not line.endswith(b"keyword 'hdrcharset'")}
    assert (done.returncode, complaints) == (0, set())
    check(unpacked)


def codec_of(layer: tuple[LocalBackend, BuiltLayer]) -> Codec:
    return codec_for_media_type(layer[1].descriptor.media_type)


def test_compressors_accept_it(layer: tuple[LocalBackend, BuiltLayer], require: Callable[..., None]) -> None:
    """Each tool of a format tests and unpacks our frames."""
    require("gzip", "pigz", "zstd")
    archive = b"".join(codec_of(layer).decompress([blob(layer).read_bytes()]))
    kind = layer[1].descriptor.media_type.partition("+")[2]
    for tool in {"gzip": ["gzip", "pigz", "zstd"], "zstd": ["zstd"]}.get(kind, []):
        with blob(layer).open("rb") as file:
            subprocess.run([tool, "-t"], stdin=file, check=True, capture_output=True)
        with blob(layer).open("rb") as file:
            unpacked = subprocess.run([tool, "-dc"], stdin=file, check=True, capture_output=True).stdout
        assert unpacked == archive


@pytest.fixture(scope="session")
def gunzip_in_go(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., None]) -> Path:
    """A program that reads with Go's compress/gzip: what docker, containerd and skopeo read layers with."""
    require("go")
    folder = tmp_path_factory.mktemp("go")
    (folder / "gunzip.go").write_text(GUNZIP)
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    command = ["go", "build", "-o", folder / "gunzip", folder / "gunzip.go"]
    subprocess.run(command, check=True, env=environment, cwd=folder)
    return folder / "gunzip"


GUNZIP = """
package main

import (
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

func main() {
	reader, err := gzip.NewReader(os.Stdin)
	if err != nil {
		panic(err)
	}
	hash := sha256.New()
	size, err := io.Copy(hash, reader)
	if err != nil {
		panic(err)
	}
	fmt.Printf("sha256:%x %d", hash.Sum(nil), size)
}
"""


def test_go_reads_it(layer: tuple[LocalBackend, BuiltLayer], gunzip_in_go: Path) -> None:
    """Go's own gzip reader takes all members for one stream, to the last byte."""
    built = layer[1]
    if built.descriptor.media_type != LAYER_GZIP:
        pytest.skip("Go's standard library reads gzip only")
    with blob(layer).open("rb") as file:
        printed = subprocess.run([gunzip_in_go], stdin=file, check=True, capture_output=True, text=True).stdout
    assert printed == f"{built.diff_id} {built.uncompressed_size}"


def image(layer: tuple[LocalBackend, BuiltLayer]) -> Path:
    backend, built = layer
    config = ImageConfig(architecture="amd64", os="linux", rootfs=RootFS((built.diff_id,)))
    stored = put_blob(backend, config.to_bytes(), media_type=config.MEDIA_TYPE)
    manifest = Manifest(config=stored, layers=(built.descriptor,))
    described: Descriptor = put_blob(backend, manifest.to_bytes(), media_type=manifest.MEDIA_TYPE)
    publish_ref(backend, "image", "v1", described)
    return backend.root


def test_umoci_unpacks_it(layer: tuple[LocalBackend, BuiltLayer], unpacked: Path, require: Callable[..., None]) -> None:
    """Go's archive reader, behind umoci, unpacks the same files; the storage is a valid OCI layout for it."""
    require("umoci")
    if layer[1].descriptor.media_type.endswith("zstd"):
        pytest.skip("this umoci reads no zstd")
    run("umoci", "unpack", "--rootless", "--image", f"{image(layer)}:image:v1", unpacked / "bundle")
    check(unpacked / "bundle" / "rootfs")


def test_skopeo_copies_it(layer: tuple[LocalBackend, BuiltLayer], tmp_path: Path, require: Callable[..., None]) -> None:
    """Skopeo finds the image by its name, checks every digest, and unpacks the layer to its diff_id."""
    require("skopeo")
    source = f"oci:{image(layer)}:image:v1"
    run("skopeo", "--insecure-policy", "copy", "--dest-decompress", source, f"dir:{tmp_path / 'unpacked'}")
    assert (tmp_path / "unpacked" / layer[1].diff_id.hex).stat().st_size == layer[1].uncompressed_size


def test_bytes_are_equal_in_another_process(tmp_path: Path) -> None:
    """A fresh interpreter with other hash seeds, locale and umask writes the same blob."""
    code = """
import os, sys
os.umask(0o077)
from nixery_core.archive import store_entries
from nixery_core.compression import GzipCodec
from nixery_core.layer_stream import Helpers
from nixery_core.layer_writer import LayerWriter
from nixery_core.model.storepath import StorePath
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.nix_store import DirectoryReader
path = StorePath.parse(sys.argv[3])
built = LayerWriter(open_backend(sys.argv[1]), GzipCodec()).write(
    store_entries([path], DirectoryReader(sys.argv[2])), layer_key="k")
sys.stdout.buffer.write(built.to_bytes())
"""
    write_store(STORE, tmp_path / "store")
    backend = LocalBackend(tmp_path / "here")
    here = LayerWriter(backend, GzipCodec()).write(store_entries(STORE.trees, STORE), layer_key="k").to_bytes()
    for number, locale in enumerate(["C", "C.UTF-8", "POSIX"]):
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "LC_ALL": locale, "TZ": f"UTC+{number}"}
        environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if number == 2 else {}
        command = [sys.executable, "-c", code, tmp_path / f"there {number}", tmp_path / "store", str(PATH)]
        assert subprocess.run(command, check=True, capture_output=True, env=environment).stdout == here

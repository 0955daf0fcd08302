"""Write the golden files of this folder again, and leave the difference to a reviewer.

    python tests/golden/regenerate.py [--nix-bin DIR] [--newer-nix-bin DIR] [--into DIR]

The folder of a newer Nix (2.19 and later print path information as an object) is optional; its
golden file is left as it is without one.  Needs nixery_core and Nix; builds the demo package set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nixery_core.model.digest import Digest
from nixery_core.model.oci import (
    CONFIG,
    LAYER_GZIP,
    MANIFEST,
    REF_NAME,
    ContainerConfig,
    Descriptor,
    Document,
    History,
    ImageConfig,
    ImageIndex,
    ImagePlatform,
    Manifest,
    RootFS,
)
from nixery_core.nix.demo import demo_nix, demo_path

HERE = Path(__file__).parent
ROOTS = ("toolbox", "editor-small", "lookup")
TEXTS = ("", "a", "hello\n", "nixery_core", "\x00" * 1000, "0123456789abcdfghijklmnpqrsvwxyz")
# nothing that differs from one machine or day to the next
VOLATILE = ("registrationTime", "ultimate", "signatures", "deriver", "ca")
# with structured attributes nothing is in the environment, and .attrs.sh needs bash
GRAPH = r"""
let set = import @SET@ { };
in derivation {
  name = "graph.json";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-euc" ''
    PATH=/usr/bin:/bin
    cp .attrs.json "$(sed 's/.*"outputs":{"out":"\([^"]*\)".*/\1/' .attrs.json)"
  '' ];
  __structuredAttrs = true;
  exportReferencesGraph.graph = [ set.toolbox set.editor-small set.lookup ];
}
"""


class Tools:
    """The Nix to ask, with a store of its own."""

    def __init__(self, binaries: Path | None, root: Path) -> None:
        nix = demo_nix(root / "store")
        self._options = ["--store", str(nix.store)]
        for name, value in nix.options.items():
            self._options += ["--option", name, value]
        self._binaries = binaries
        self._environment = os.environ | {"XDG_CACHE_HOME": str(root / "cache"), "NIX_PATH": ""}
        self.store = root / "store"

    def run(self, tool: str, *arguments: str, store: bool = True) -> str:
        program = tool if self._binaries is None else str(self._binaries / tool)
        return subprocess.run(
            [program, *arguments, *(self._options if store else [])],
            env=self._environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def build(self, *arguments: str) -> list[str]:
        return self.run("nix-build", "--no-out-link", *arguments).split()

    def path_info(self, paths: Sequence[str]) -> Any:
        arguments = ["--extra-experimental-features", "nix-command", "path-info", "--json", "--recursive", *paths]
        return json.loads(self.run("nix", *arguments))


def trimmed(rows: Any) -> Any:
    if isinstance(rows, dict):
        return {path: trimmed([row])[0] for path, row in sorted(rows.items())}
    kept = [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]
    return sorted(kept, key=lambda row: str(row.get("path")))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def nix_files(tools: Tools, into: Path) -> None:
    attributes = [word for root in ROOTS for word in ("-A", root)]
    roots = sorted(tools.build(str(demo_path()), *attributes))
    document = trimmed(tools.path_info(roots))
    form = "object" if isinstance(document, dict) else "list"
    write_json(into / f"nix-path-info-{form}.json", {"roots": roots, "answer": document})
    if form == "object":
        return
    expression = GRAPH.replace("@SET@", str(demo_path()))
    (graph,) = tools.build("--expr", expression)
    answer = json.loads(Path(f"{tools.store}{graph}").read_text())
    kept = {key: answer[key] for key in ("exportReferencesGraph", "graph")}
    kept["graph"] = trimmed(kept["graph"])
    write_json(into / "nix-reference-graph.json", kept)
    hashes = []
    with tempfile.TemporaryDirectory() as folder:
        for text in TEXTS:
            file = Path(folder) / "text"
            file.write_text(text)
            forms = {
                name: tools.run("nix-hash", "--type", "sha256", "--flat", *arguments, str(file), store=False).strip()
                for name, arguments in (("base16", []), ("base32", ["--base32"]))
            }
            command = ["--extra-experimental-features", "nix-command", "hash", "to-sri", "--type", "sha256"]
            sri = tools.run("nix", *command, forms["base16"], store=False).strip()
            hashes.append({"text": text, **forms, "sri": sri})
    write_json(into / "nix-hashes.json", hashes)


def oci_documents() -> dict[str, Document]:
    """Return one document of each type with every field set, and with none that can be left out."""
    layer = Descriptor(LAYER_GZIP, Digest.of(b"layer"), 5)
    minimal = ImageConfig(architecture="amd64", os="linux", rootfs=RootFS((Digest.of(b"tar"),)))
    full = ImageConfig(
        architecture="arm",
        os="linux",
        variant="v7",
        created="1970-01-01T00:00:00Z",
        author="Zoë",
        config=ContainerConfig(
            user="app:staff",
            exposed_ports=("8080/tcp", "53/udp"),
            env=("PATH=/bin", "EMPTY="),
            entrypoint=("/bin/sh", "-c"),
            cmd=("echo \"quoted\" 'and' ünicode",),
            volumes=("/data",),
            working_dir="/data",
            labels={"b": "2", "a": "1"},
            stop_signal="SIGTERM",
        ),
        rootfs=RootFS((Digest.of(b"tar"), Digest.of(b"top"))),
        history=(History(created_by="nixery-core", comment="bash"), History(comment="nothing", empty_layer=True)),
    )
    manifest = Manifest(config=Descriptor.of(CONFIG, minimal.to_bytes()), layers=(layer,))
    annotated = Manifest(
        config=Descriptor.of(CONFIG, full.to_bytes()),
        layers=(layer, Descriptor(LAYER_GZIP, Digest.of(b"top"), 0, annotations={"note": "empty"})),
        annotations={"org.opencontainers.image.revision": "0" * 40},
        subject=Descriptor.of(MANIFEST, manifest.to_bytes()),
        artifact_type="application/example",
    )
    entry = Descriptor(
        MANIFEST,
        Digest.of(manifest.to_bytes()),
        len(manifest.to_bytes()),
        annotations={REF_NAME: "shell/git:latest"},
        platform=ImagePlatform("amd64", "linux"),
    )
    return {
        "config-minimal": minimal,
        "config-full": full,
        "manifest-minimal": manifest,
        "manifest-full": annotated,
        "index-empty": ImageIndex(manifests=()),
        "index": ImageIndex(manifests=(entry,)),
    }


def oci_files(into: Path) -> None:
    for name, document in oci_documents().items():
        # the file is the bytes themselves, so no newline at its end
        (into / f"oci-{name}.json").write_bytes(document.to_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nix-bin", type=Path, help="folder of a Nix that prints path information as a list")
    parser.add_argument("--newer-nix-bin", type=Path, help="folder of a Nix that prints it as an object")
    parser.add_argument("--into", type=Path, default=HERE)
    arguments = parser.parse_args()
    oci_files(arguments.into)
    with tempfile.TemporaryDirectory() as folder:
        try:
            nix_files(Tools(arguments.nix_bin, Path(folder) / "old"), arguments.into)
            if arguments.newer_nix_bin:
                nix_files(Tools(arguments.newer_nix_bin, Path(folder) / "new"), arguments.into)
        finally:
            # Nix takes the write permission away from all it stores
            for path, _, _ in os.walk(folder):
                Path(path).chmod(0o700)


if __name__ == "__main__":
    main()

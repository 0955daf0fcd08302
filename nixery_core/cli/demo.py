"""``nixery-core demo``: a first image, by Python alone, or by Nix where it is asked for."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nixery_core.builder import ImageBuilder
from nixery_core.cache_source import BinaryCacheSource
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.image_report import report_image
from nixery_core.cli.progress import progress
from nixery_core.demo import DemoCache, write_demo_cache
from nixery_core.index.index_file import IndexFile
from nixery_core.model.image import ImageSpec
from nixery_core.nix.demo import demo_nix, demo_path
from nixery_core.sources import LocalPath
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.binary_cache import BinaryCache

_SUMMARY = "Build an image of the packages that come with nixery-core, offline and without Nix."


def add_demo_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("demo", help=_SUMMARY, description=_SUMMARY)
    parser.add_argument("name", metavar="NAME", nargs="?", default="hello", help="image name (default: hello)")
    parser.add_argument(
        "--dir", metavar="DIR", default="nixery-demo", help="where everything goes (default: ./nixery-demo)"
    )
    parser.add_argument(
        "--nix",
        action="store_true",
        help="have Nix build the demo's package set, in a store of its own, in place of reading a binary cache",
    )
    group = parser.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    group.add_argument(
        "--progress",
        choices=["auto", "bars", "plain", "none"],
        default="auto",
        help="on stderr (default: bars on a terminal)",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="also show what builders print")
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    """Build an image of the demo, and say how it runs."""
    spec = ImageSpec.parse(arguments.name)
    directory = Path(arguments.dir).absolute()
    backend = open_backend(directory / "images")
    if arguments.nix:
        builder = ImageBuilder(LocalPath(demo_path()), backend, realiser=demo_nix(directory / "nix"))
    else:
        builder = ImageBuilder(demo_source(write_demo_cache(directory / "cache")), backend)
    with progress(arguments.progress, verbose=arguments.verbose) as on_event:
        image = builder.build(spec, on_event=on_event)
    report_image(image, json=arguments.json)
    if not arguments.json:
        layout = shlex.quote(f"oci:{directory / 'images'}:{spec.name}:{spec.tag}")
        print(f"\nThe folder {directory / 'images'} is an OCI image layout. Run the image, or push it:")
        print(f"  podman run --rm {layout}" + ("" if image.config.config.cmd else f" /bin/{spec.packages[0]}"))
        print(f"  skopeo copy {layout} docker://REGISTRY/{spec.name}:{spec.tag}")
    return ExitCode.OK


def demo_source(cache: DemoCache) -> BinaryCacheSource:
    """Return the demo's binary cache as a package source; its paths follow from their content, so no key is trusted."""
    return BinaryCacheSource(BinaryCache(str(cache.folder), trusted_keys=()), IndexFile(str(cache.index)))

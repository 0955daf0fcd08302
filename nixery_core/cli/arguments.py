"""The arguments of ``nixery-core``, and what the library is given for them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from nixery_core.cli import commands, names
from nixery_core.cli.cache_argument import add_cache_arguments
from nixery_core.cli.compare import add_compare_command
from nixery_core.cli.demo import add_demo_command
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.fsck import add_fsck_command
from nixery_core.cli.gc import add_gc_command
from nixery_core.cli.index import add_index_command
from nixery_core.cli.layerer_argument import add_layerer_argument
from nixery_core.cli.nix_arguments import add_nix_arguments
from nixery_core.cli.popcount import add_popcount_command
from nixery_core.cli.serve import add_serve_command
from nixery_core.cli.source_argument import GRAMMAR
from nixery_core.layering.layerer import DEFAULT_BUDGET


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it is wrong, as argparse does."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code.value:3}  {code.name.lower().replace('_', ' ')}" for code in ExitCode)
    parser = argparse.ArgumentParser(
        prog="nixery-core",
        description="Container images from Nix package names, kept in any storage that fsspec reaches.",
        epilog=f"package sources (--source):\n{textwrap.indent(GRAMMAR, '  ')}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nixery-core {commands.version()}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _build(subparsers)
    _plan(subparsers)
    _inspect(subparsers)
    add_demo_command(subparsers)
    add_index_command(subparsers)
    add_serve_command(subparsers)
    names.add_commands(subparsers)
    add_fsck_command(subparsers)
    add_compare_command(subparsers)
    add_popcount_command(subparsers)
    add_gc_command(subparsers)
    return parser


def _command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    return subparsers.add_parser(name, help=summary, description=summary)


def _build(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(subparsers, "build", "Build an image and put it into the storage.")
    _image_arguments(parser)
    add_cache_arguments(parser)
    _builder_arguments(parser)
    _run_config_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="FORMAT:FILE",
        help="also write the image to one file: docker-archive:FILE or oci-archive:FILE; FILE may be - for stdout",
    )
    _report_arguments(parser)
    parser.set_defaults(run=commands.build)


def _plan(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(subparsers, "plan", "Show the layers of an image, and which of them are stored already.")
    _image_arguments(parser)
    add_cache_arguments(parser)
    _builder_arguments(parser)
    parser.add_argument("--html", metavar="FILE", help="also write a page with a picture of the layers")
    _report_arguments(parser)
    parser.set_defaults(run=commands.plan)


def _inspect(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(subparsers, "inspect", "Show an image of the storage, or the names of all images.")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="NAME[:TAG] or a digest; without it, all names")
    _store_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=commands.inspect)


def _store_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", required=True, help="storage: a folder, or any URL that fsspec knows")


def _image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAMES", nargs="*", help="an image name such as shell/git, or several words")
    parser.add_argument(
        "-A",
        "--attribute",
        action="append",
        default=[],
        metavar="ATTR",
        help="add a package by its literal attribute path",
    )
    parser.add_argument(
        "--source", metavar="SOURCE", required=True, help="where packages come from: see nixery-core --help"
    )
    _store_argument(parser)
    parser.add_argument(
        "--tag", default="latest", help="what the source resolves: a branch, tag or commit (default: latest)"
    )
    parser.add_argument("--name", help="name of the image in the storage (default: made of NAMES)")
    parser.add_argument(
        "--platform", metavar="PLATFORM", help="linux/amd64, arm64, aarch64-linux ... (default: linux/amd64)"
    )
    parser.add_argument(
        "--no-implied", action="store_true", help="do not add cacert and iana-etc where the set has them"
    )
    parser.add_argument("--allow-unfree", action="store_true", help="pass config.allowUnfree to the package set")
    parser.add_argument("--import-args", metavar="JSON", help="arguments for the package set, as a JSON object")


def _builder_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is built")
    group.add_argument(
        "--codec",
        default="gzip",
        help="compression of layers: gzip, gzip-fast, zstd, none; with a level as in zstd:19 (default: gzip)",
    )
    group.add_argument(
        "--budget", type=int, default=DEFAULT_BUDGET, help=f"most layers of store paths (default: {DEFAULT_BUDGET})"
    )
    group.add_argument(
        "--verify", action="store_true", help="check store paths against their narHash while they are written"
    )
    add_layerer_argument(group)
    group.add_argument("--popularity", metavar="URL", help="package popularity, for better layers: a file or any URL")
    add_nix_arguments(group)


def _run_config_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how its containers run")
    group.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable")
    group.add_argument("--entrypoint", metavar="JSON|WORD", help="a word, or a JSON list of words")
    group.add_argument(
        "--cmd", metavar="JSON|WORD", help="a word, or a JSON list of words (default: the shell, if one is in)"
    )
    group.add_argument("--user", default="", help="name or number, with :group if wanted")
    group.add_argument("--workdir", default="", metavar="DIR")
    group.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    group.add_argument("--port", action="append", default=[], metavar="PORT[/PROTOCOL]")
    group.add_argument("--volume", action="append", default=[], metavar="DIR")
    group.add_argument("--stop-signal", default="", metavar="SIGNAL")
    group.add_argument("--created", metavar="TIME", help="RFC 3339 date and time (default: 1970)")
    group.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="SOURCE:TARGET[:MODE]",
        help="add a file of this machine to the image",
    )


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    group.add_argument(
        "--progress",
        choices=["auto", "bars", "plain", "none"],
        default="auto",
        help="on stderr (default: bars on a terminal)",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="also show what builders print")

"""``nixery-core index``: write down the store paths of a package set, for machines without Nix."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nixery_core._documents import PACKERS, pack_document
from nixery_core._redact import redact
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.nix_arguments import add_nix_arguments, nix_of
from nixery_core.cli.progress import progress
from nixery_core.cli.source_argument import parse_import_args, parse_source
from nixery_core.errors import InvalidConfig
from nixery_core.export import write_file_atomically
from nixery_core.index.document import index_bytes
from nixery_core.index.entry import IndexEntry
from nixery_core.model.platform import AMD64, Platform
from nixery_core.nix.client import DEFAULT_BATCH
from nixery_core.sources import Pin
from nixery_core.stores.realiser import RealiserSource

_SUMMARY = "Write down the store paths of all packages of a set, so that images can be built of them without Nix."


def add_index_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("index", help=_SUMMARY, description=_SUMMARY)
    parser.add_argument(
        "--source", metavar="SOURCE", required=True, help="where packages come from: see nixery-core --help"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help=f"the index; a name that ends in {', '.join(PACKERS)} packs it; - is standard output",
    )
    parser.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="PLATFORM",
        help="linux/amd64, arm64, aarch64-linux ...; may be repeated (default: linux/amd64)",
    )
    parser.add_argument("--tag", default="latest", help="what the source resolves (default: latest)")
    parser.add_argument("--allow-unfree", action="store_true", help="pass config.allowUnfree to the package set")
    parser.add_argument("--import-args", metavar="JSON", help="arguments for the package set, as a JSON object")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="ATTR",
        help="also walk this set, though it has no recurseForDerivations; may be repeated",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=DEFAULT_BATCH,
        metavar="N",
        help=f"attributes for one call of Nix, whose memory grows with them (default: {DEFAULT_BATCH})",
    )
    add_nix_arguments(parser.add_argument_group("the Nix that evaluates"))
    group = parser.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="print what was written as one JSON document on stdout")
    group.add_argument("--progress", choices=["auto", "bars", "plain", "none"], default="auto", help="on stderr")
    group.add_argument("-v", "--verbose", action="store_true", help="also show what Nix prints")
    parser.set_defaults(run=index)


def index(arguments: argparse.Namespace) -> int:
    """Write the index of a package set."""
    platforms = [Platform.parse(text) for text in arguments.platform] or [AMD64]
    _check_output(arguments)
    import_args = parse_import_args(arguments.import_args, allow_unfree=arguments.allow_unfree)
    source = parse_source(arguments.source, import_args)
    if isinstance(source, RealiserSource):
        raise InvalidConfig(
            "an index is made of a package set, with Nix", hint="a source that needs no Nix has an index already"
        )
    nix = nix_of(arguments)
    entries: dict[str, dict[str, IndexEntry]] = {}
    with progress(arguments.progress, verbose=arguments.verbose) as on_event:
        pin = source.pin(arguments.tag)
        for platform in platforms:
            found = nix.index(pin, platform, batch=arguments.batch, include=arguments.include, on_event=on_event)
            entries[platform.system] = dict(found)
    data = index_bytes(entries, source=_provenance(pin))
    packed = pack_document(data, arguments.output)
    if arguments.output == "-":
        sys.stdout.buffer.write(packed)
        sys.stdout.buffer.flush()
        return ExitCode.OK
    with write_file_atomically(arguments.output) as writer:
        writer.write(packed)
    counts = {
        system: {
            "packages": sum(entry.problem is None for entry in packages.values()),
            "problems": sum(entry.problem is not None for entry in packages.values()),
        }
        for system, packages in sorted(entries.items())
    }
    if arguments.json:
        json.dump(
            {"file": arguments.output, "size": len(packed), "revision": pin.revision, "systems": counts}, sys.stdout
        )
        print()
        return ExitCode.OK
    for system, count in counts.items():
        print(f"{system}: {count['packages']} packages, {count['problems']} that cannot be used")
    print(f"{arguments.output} is written, {len(packed)} bytes")
    return ExitCode.OK


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuse before the work starts what cannot be written after it."""
    if arguments.output == "-":
        if arguments.json:
            raise InvalidConfig("--json and the index cannot both go to standard output", hint="name a file")
    elif not Path(arguments.output).absolute().parent.is_dir():
        parent = Path(arguments.output).parent
        raise InvalidConfig(f"there is no folder {parent} for the index", hint="create it first")
    pack_document(b"", arguments.output)


def _provenance(pin: Pin) -> dict[str, str]:
    values = {"kind": pin.kind, "url": redact(pin.url), "revision": pin.revision}
    return {name: value for name, value in values.items() if value is not None}

"""``nixery-core popcount``: count in how many closures each package is, for better layers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nixery_core._documents import PACKERS, pack_document
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.walk_progress import walk_progress
from nixery_core.errors import InvalidConfig
from nixery_core.export import write_file_atomically
from nixery_core.layering.popularity import Popularity
from nixery_core.layering.popularity_file import popularity_bytes
from nixery_core.popcount.counting import count_closures
from nixery_core.popcount.roots import read_roots
from nixery_core.popcount.state import WalkState
from nixery_core.popcount.walk import walk_closures
from nixery_core.served import ServedCounter
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.binary_cache import BinaryCache

CACHE = "https://cache.nixos.org"
"""Asked where no cache is named."""
_SUMMARY = "Count in how many closures each package is, so that images share more of their layers."
_SHOWN = 10


def add_popcount_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("popcount", help=_SUMMARY, description=_SUMMARY)
    parser.add_argument(
        "roots",
        metavar="ROOTS",
        nargs="*",
        help="channel:NAME, store paths, or lists of them (files, URLs, - for stdin), packed or not",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help=f"the counts; a name that ends in {', '.join(PACKERS)} packs them; - is standard output",
    )
    walk = parser.add_argument_group("counting what a binary cache has")
    walk.add_argument(
        "--cache",
        metavar="URL",
        action="append",
        default=[],
        help=f"a web address, folder or URL; the next one is asked for what it does not have (default: {CACHE})",
    )
    walk.add_argument("--connections", type=int, default=32, metavar="N", help="most requests at once (default: 32)")
    walk.add_argument("--allow-missing", action="store_true", help="leave out what the cache does not have")
    walk.add_argument(
        "--state",
        metavar="FILE",
        help="where an interrupted count goes on; kept for the next one (default: FILE.state, removed at the end)",
    )
    served = parser.add_argument_group("counting what was served")
    served.add_argument("--served", metavar="URL", help="count the images that were served from this storage instead")
    served.add_argument("--half-life", type=float, metavar="DAYS", help="age at which an image counts half")
    served.add_argument("--compact", action="store_true", help="first merge what was counted on days that are over")
    group = parser.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="print what was written as one JSON document on stdout")
    group.add_argument("--progress", choices=["auto", "bars", "plain", "none"], default="auto", help="on stderr")
    parser.set_defaults(run=popcount)


def popcount(arguments: argparse.Namespace) -> int:
    """Count, and write the popularity file."""
    _check(arguments)
    popularity, facts = _served(arguments) if arguments.served else _walked(arguments)
    numbers = {name: value for name, value in facts.items() if isinstance(value, int)}
    packed = pack_document(popularity_bytes(popularity, numbers), arguments.output)
    if arguments.output == "-":
        sys.stdout.buffer.write(packed)
        sys.stdout.buffer.flush()
    else:
        with write_file_atomically(arguments.output) as writer:
            writer.write(packed)
        state = _default_state(arguments.output)
        if state is not None and not arguments.served and arguments.state is None:
            state.unlink(missing_ok=True)
    missing = facts.get("missing_paths", [])
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        print(f"left out, for no cache has them: {', '.join(missing[:_SHOWN])}{more}", file=sys.stderr)
    if arguments.json:
        report = {"file": arguments.output, "digest": popularity.digest, "names": len(popularity.counts), **facts}
        json.dump(report, sys.stdout, indent=2)
        print()
    elif arguments.output != "-":
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in numbers.items())
        print(f"{len(popularity.counts)} package names in {arguments.output}, of {told}")
    return ExitCode.OK


def _walked(arguments: argparse.Namespace) -> tuple[Popularity, Mapping[str, Any]]:
    roots = read_roots(arguments.roots)
    if not roots:
        raise InvalidConfig("there are no store paths in the lists", hint="name a list that has some")
    # what is counted is names: nothing of the cache is ever run
    caches = [BinaryCache(url, allow_unsigned=True, connections=arguments.connections) for url in _caches(arguments)]
    with _state(arguments) as state:
        with walk_progress(arguments.progress) as on_progress:
            walk = walk_closures(
                roots,
                caches,
                known=state.facts() if state else None,
                keep=state.keep if state else None,
                allow_missing=arguments.allow_missing,
                on_progress=on_progress,
            )
        counts = count_closures(walk.facts, roots)
    return counts.popularity, {
        "root_packages": counts.roots,
        "store_paths": counts.paths,
        "missing": len(walk.missing),
        "missing_paths": [str(path) for path in walk.missing],
    }


def _served(arguments: argparse.Namespace) -> tuple[Popularity, Mapping[str, Any]]:
    counter = ServedCounter(open_backend(arguments.served))
    if arguments.compact:
        counter.compact()
    found = counter.popularity(half_life=arguments.half_life)
    return found.popularity, {"images_served": found.served, "unknown_images": found.unknown}


@contextmanager
def _state(arguments: argparse.Namespace) -> Iterator[WalkState | None]:
    file = arguments.state or _default_state(arguments.output)
    try:
        with nullcontext() if file is None else WalkState(file, _caches(arguments)) as state:
            yield state
    except KeyboardInterrupt:
        if file is not None:
            print(f"nixery-core: what was found is in {file}: run it again to go on", file=sys.stderr)
        raise


def _caches(arguments: argparse.Namespace) -> list[str]:
    return arguments.cache or [CACHE]


def _default_state(output: str) -> Path | None:
    # there is no place beside a pipe or a device
    path = Path(output)
    return None if output == "-" or (path.exists() and not path.is_file()) else Path(f"{output}.state")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse before the work starts what cannot be done or written after it."""
    if bool(arguments.roots) == bool(arguments.served):
        raise InvalidConfig(
            "name either ROOTS or --served", hint="channel:nixos-unstable, a list of store paths, or --served STORAGE"
        )
    if not arguments.served and (arguments.compact or arguments.half_life is not None):
        raise InvalidConfig("--half-life and --compact belong to --served")
    if arguments.connections < 1:
        raise InvalidConfig(f"--connections is a number of 1 or more, not {arguments.connections}")
    if arguments.output == "-":
        if arguments.json:
            raise InvalidConfig("--json and the counts cannot both go to standard output", hint="name a file")
    elif not Path(arguments.output).absolute().parent.is_dir():
        parent = Path(arguments.output).parent
        raise InvalidConfig(f"there is no folder {parent} for the counts", hint="create it first")
    pack_document(b"", arguments.output)

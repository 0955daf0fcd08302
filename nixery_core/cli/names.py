"""The commands ``index-export`` and ``untag``: the names of a storage."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace

from nixery_core.cli.exit_codes import ExitCode
from nixery_core.errors import InvalidTag, ObjectNotFound
from nixery_core.model.names import check_name, check_tag
from nixery_core.storage.image_index import write_index
from nixery_core.storage.layout import delete_ref
from nixery_core.storage.plugins import open_backend


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the arguments of the commands."""
    summary = "Write index.json from the names in a storage; a directory has it always."
    parser = subparsers.add_parser("index-export", help=summary, description=summary)
    _store_arguments(parser)
    parser.set_defaults(run=index_export)
    summary = "Forget a name; what only it needed goes with the next gc."
    parser = subparsers.add_parser("untag", help=summary, description=summary)
    _store_arguments(parser)
    parser.add_argument("image", metavar="NAME:TAG", help="the name and the tag to forget")
    parser.set_defaults(run=untag)


def index_export(arguments: Namespace) -> int:
    """Write index.json."""
    names = write_index(open_backend(arguments.store))
    if arguments.json:
        print(json.dumps({"names": names}))
    else:
        print(f"index.json has {names} names" if names != 1 else "index.json has 1 name")
    return ExitCode.OK


def untag(arguments: Namespace) -> int:
    """Forget a name."""
    name, colon, tag = arguments.image.rpartition(":")
    if not colon:
        raise InvalidTag(f"{arguments.image!r} names no tag", hint=f"write {arguments.image}:latest")
    if not delete_ref(open_backend(arguments.store), check_name(name), check_tag(tag)):
        raise ObjectNotFound(
            f"there is no image {arguments.image} in the storage",
            hint="list all with: nixery-core inspect --store URL",
        )
    if arguments.json:
        print(json.dumps({"name": name, "tag": tag}))
    else:
        print(f"{arguments.image} is forgotten")
    return ExitCode.OK


def _store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="storage: a folder, or any URL that fsspec knows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")

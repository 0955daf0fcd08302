"""``nixery-core compare``: what does a client that has one image pull for another?"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.find_image import find_image
from nixery_core.cli.text import bytes_text, table
from nixery_core.comparison import ComparedLayer, Comparison, compare_images
from nixery_core.storage.plugins import open_backend

_SUMMARY = "Show what a client that has image A pulls for image B, layer by layer."


def add_compare_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("compare", help=_SUMMARY, description=_SUMMARY)
    parser.add_argument("first", metavar="A", help="the image that the client has: NAME[:TAG] or a digest")
    parser.add_argument("second", metavar="B", help="the image that it asks for")
    parser.add_argument("--store", metavar="URL", required=True, help="storage: a folder, or any URL that fsspec knows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Compare two images."""
    backend = open_backend(arguments.store)
    first, second = find_image(backend, arguments.first), find_image(backend, arguments.second)
    comparison = compare_images(backend, first, second)
    if arguments.json:
        print(json.dumps(_json(comparison), indent=2, ensure_ascii=False))
        return ExitCode.OK
    rows = [
        [str(number), "shared" if layer.shared else "new", bytes_text(layer.descriptor.size), layer.holds]
        for number, layer in enumerate(comparison.layers, 1)
    ]
    print(table(["layer", "state", "size", "holds"], rows, right=[0, 2]))
    new = [layer for layer in comparison.layers if not layer.shared]
    print(
        f"pulls {len(new)} of {len(rows)} layers, {bytes_text(comparison.pulled)} "
        f"of {bytes_text(comparison.pulled + comparison.shared)}, and {bytes_text(comparison.documents)} of documents"
    )
    print(
        f"from the bottom {comparison.common_bottom} layers are the same; {len(comparison.dropped)} of A are not in B"
    )
    return ExitCode.OK


def _json(comparison: Comparison) -> Mapping[str, Any]:
    return {
        "first": str(comparison.first.digest),
        "second": str(comparison.second.digest),
        "pulled": comparison.pulled,
        "shared": comparison.shared,
        "documents": comparison.documents,
        "common_bottom": comparison.common_bottom,
        "layers": [{**_layer_json(layer), "shared": layer.shared} for layer in comparison.layers],
        "dropped": [_layer_json(layer) for layer in comparison.dropped],
    }


def _layer_json(layer: ComparedLayer) -> dict[str, Any]:
    return {"digest": str(layer.descriptor.digest), "size": layer.descriptor.size, "holds": layer.holds}

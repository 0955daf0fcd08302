"""What each command does."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nixery_core.builder import ImageBuilder
from nixery_core.cli.cache_argument import cache_options
from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.find_image import find_image
from nixery_core.cli.image_arguments import image_spec
from nixery_core.cli.image_report import report_image
from nixery_core.cli.layerer_argument import parse_layerer
from nixery_core.cli.nix_arguments import nix_of
from nixery_core.cli.output import check_output_file, parse_output, write_output
from nixery_core.cli.plan_page import plan_page
from nixery_core.cli.progress import progress
from nixery_core.cli.source_argument import parse_import_args, parse_source
from nixery_core.cli.text import bytes_text, table
from nixery_core.export import write_file_atomically
from nixery_core.image import ImagePlan
from nixery_core.layering.popularity import Popularity
from nixery_core.model.oci import ImageConfig, Manifest
from nixery_core.storage.blobs import read_blob
from nixery_core.storage.layout import list_refs
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.realiser import RealiserSource


def version() -> str:
    """Return the version of the installed distribution."""
    return metadata.version("nixery-core")


def build(arguments: Namespace) -> int:
    """Build an image and put it into the storage."""
    spec = image_spec(arguments)
    output = parse_output(arguments.output, json=arguments.json)
    builder = _builder(arguments)
    with progress(arguments.progress, verbose=arguments.verbose) as on_event:
        image = builder.build(spec, on_event=on_event)
        if output is not None:
            write_output(output, image, builder.backend)
    if output is None or not output.is_stdout:
        report_image(image, json=arguments.json)
    return ExitCode.OK


def plan(arguments: Namespace) -> int:
    """Show the layers of an image."""
    spec = image_spec(arguments)
    check_output_file(arguments.html, "--html")
    builder = _builder(arguments)
    with progress(arguments.progress, verbose=arguments.verbose) as on_event:
        result = builder.plan(spec, on_event=on_event)
    if arguments.html is not None:
        with write_file_atomically(arguments.html) as file:
            file.write(plan_page(result).encode())
    if arguments.json:
        _print_json(_plan_json(result))
        return ExitCode.OK
    rows = [
        [
            str(number),
            bytes_text(layer.plan.nar_size),
            str(len(layer.plan.paths)),
            "stored" if layer.built else "to write",
            layer.plan.reason or layer.plan.paths[0].name,
        ]
        for number, layer in enumerate(result.layers, 1)
    ]
    print(table(["layer", "size", "paths", "state", "holds"], rows, right=[0, 1, 2]))
    print(f"{len(rows)} layers, {len(result.closure)} store paths, {bytes_text(result.closure.nar_size)}")
    return ExitCode.OK


def inspect(arguments: Namespace) -> int:
    """Show an image of the storage, or all names."""
    backend = open_backend(arguments.store)
    if arguments.image is None:
        refs = list(list_refs(backend))
        if not refs and not arguments.json:
            print("there is no image in this storage", file=sys.stderr)
        elif arguments.json:
            _print_json([{"name": name, "tag": tag, "digest": str(found.digest)} for name, tag, found in refs])
        else:
            print(table(["name", "tag", "digest"], [[name, tag, str(found.digest)] for name, tag, found in refs]))
        return ExitCode.OK
    descriptor = find_image(backend, arguments.image)
    manifest = Manifest.from_bytes(read_blob(backend, descriptor))
    config = ImageConfig.from_bytes(read_blob(backend, manifest.config))
    if arguments.json:
        _print_json({"digest": str(descriptor.digest), "manifest": manifest.to_json(), "config": config.to_json()})
        return ExitCode.OK
    run = config.config
    facts = [
        ("digest", str(descriptor.digest)),
        ("platform", "/".join(filter(None, (config.os, config.architecture, config.variant)))),
        ("created", config.created or ""),
        ("entrypoint", shlex.join(run.entrypoint)),
        ("cmd", shlex.join(run.cmd)),
        ("user", run.user),
        *(("env", variable) for variable in run.env),
        *(("label", f"{name}={value}") for name, value in sorted(run.labels.items())),
    ]
    print(table(["what", "value"], [list(fact) for fact in facts if fact[1]]))
    rows = [
        [str(number), bytes_text(layer.size), str(layer.digest), history.comment or ""]
        for number, (layer, history) in enumerate(zip(manifest.layers, config.history, strict=False), 1)
    ]
    print("\n" + table(["layer", "size", "digest", "holds"], rows, right=[0, 1]))
    return ExitCode.OK


def _builder(arguments: Namespace) -> ImageBuilder:
    import_args = parse_import_args(arguments.import_args, allow_unfree=arguments.allow_unfree)
    source = parse_source(arguments.source, import_args, cache_options(arguments))
    return ImageBuilder(
        source,
        open_backend(arguments.store),
        realiser=None if isinstance(source, RealiserSource) else nix_of(arguments),
        codec=arguments.codec,
        budget=arguments.budget,
        layerer=parse_layerer(arguments.layerer),
        popularity=_popularity(arguments.popularity),
        verify=arguments.verify,
    )


def _popularity(url: str | None) -> Popularity:
    if url is None:
        return Popularity()
    from nixery_core.layering.popularity_file import load_popularity

    return load_popularity(url)


def _plan_json(result: ImagePlan) -> Mapping[str, Any]:
    return {
        "name": result.spec.name,
        "revision": result.revision,
        "packages": [{"name": package.name, "attribute": package.attribute} for package in result.packages],
        "nar_size": result.closure.nar_size,
        "layers": [
            {
                "layer_key": layer.layer_key,
                "nar_size": layer.plan.nar_size,
                "paths": [str(path) for path in layer.plan.paths],
                "reason": layer.plan.reason,
                "digest": str(layer.built.descriptor.digest) if layer.built else None,
            }
            for layer in result.layers
        ],
    }


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()

"""Build events as lines for a person."""

from __future__ import annotations

from nixery_core import events
from nixery_core.cli.text import bytes_text
from nixery_core.events import BuildEvent


def describe(event: BuildEvent, *, verbose: bool) -> str | None:
    """Return one line for a person, or None for what only a bar can show.

    >>> describe(events.SourceResolved(source="demo (moving)", revision=None), verbose=False)
    'source: demo (moving)'
    """
    match event:
        case events.SourceResolved(source=source):
            return f"source: {source}"
        case events.ManifestCached(digest=digest):
            return f"image is stored already: {digest}"
        case events.PackagesResolved(attributes=attributes):
            return f"packages: {', '.join(attributes)}"
        case events.PackageSkipped(name=name, reason=reason) if verbose:
            return f"left out: {name} ({reason})"
        case events.NixBuildStarted(derivation=derivation):
            return f"building {derivation}"
        case events.NixLogLine(line=line) if verbose:
            return f"  {line}"
        case events.IndexProgress(described=described, waiting=waiting):
            return f"{described} packages described, {waiting} attributes to look at"
        case events.ClosureResolved(paths=paths, nar_size=nar_size):
            return f"closure: {paths} store paths, {bytes_text(nar_size)}"
        case events.FileCollision(path=path, chosen=chosen, rejected=rejected):
            return f"collision at {path}: {chosen} is linked, {rejected} is not"
        case events.PackageNotLinked(store_path=store_path):
            return f"not linked, for it is a file: {store_path}"
        case events.LayersPlanned(layers=layers):
            return f"layers: {layers}"
        case events.LayerBuilt(digest=digest, size=size):
            return f"layer {digest[:19]} written, {bytes_text(size)}"
        case events.LayerCached(digest=digest, size=size):
            return f"layer {digest[:19]} is stored already, {bytes_text(size)}"
        case events.StorageRetried(operation=operation, key=key, delay=delay, reason=reason):
            return f"storage: {operation} {key} again in {delay:.1f} s: {reason}"
    return None

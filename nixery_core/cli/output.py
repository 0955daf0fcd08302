"""The argument ``--output``: an image as one file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import attrs

from nixery_core.errors import InvalidConfig, nearest
from nixery_core.export import FORMATS, export_image, write_file_atomically
from nixery_core.image import Image
from nixery_core.storage.backend import Backend


@attrs.frozen
class Output:
    """Where an image is written beside the storage, and in which format."""

    format: str
    file: str
    """A path, or ``-`` for standard output."""

    @property
    def is_stdout(self) -> bool:
        """Whether the image goes to standard output, which then holds nothing else."""
        return self.file == "-"


def parse_output(text: str | None, *, json: bool) -> Output | None:
    """Read ``FORMAT:FILE`` before any work starts; raises InvalidConfig.

    >>> parse_output("oci-archive:git.tar", json=False)
    Output(format='oci-archive', file='git.tar')
    """
    if text is None:
        return None
    kind, colon, file = text.partition(":")
    if kind not in FORMATS or not colon or not file:
        close = nearest(kind, FORMATS, limit=1)
        hint = f"did you mean {close[0]}:FILE?" if close else f"write {' or '.join(f'{name}:FILE' for name in FORMATS)}"
        raise InvalidConfig(f"{text!r} is not an output", hint=hint)
    output = Output(kind, file)
    if output.is_stdout:
        if json:
            raise InvalidConfig(
                "--json and the image cannot both go to standard output", hint="name a file for --output"
            )
        if sys.stdout.isatty():
            raise InvalidConfig("an image is no text for a terminal", hint="name a file, or send stdout to one")
    else:
        check_output_file(file, "--output")
    return output


def check_output_file(file: str | None, option: str) -> None:
    """Make sure before any work starts that *file* can be written; raises InvalidConfig."""
    if file is None:
        return
    path = Path(file)
    if not file or path.is_dir():
        raise InvalidConfig(f"{option} {file!r} is a folder", hint="name a file in it")
    if not path.absolute().parent.is_dir():
        raise InvalidConfig(f"there is no folder {path.parent} for the output", hint="create it first")


def write_output(output: Output, image: Image, backend: Backend) -> None:
    """Write *image*; a file is whole or not there."""

    def export(write: Callable[[bytes], object]) -> None:
        export_image(
            image.descriptor,
            backend,
            format=output.format,
            reference=f"{image.spec.name}:{image.spec.tag}",
            write=write,
            sizes={layer.diff_id: layer.uncompressed_size for layer in image.layers},
        )

    if output.is_stdout:
        export(sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
    else:
        with write_file_atomically(output.file) as writer:
            export(writer.write)

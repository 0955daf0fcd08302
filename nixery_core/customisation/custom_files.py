"""Custom files of the embedder: as one set they must be something that an archive can hold."""

from __future__ import annotations

from collections.abc import Iterable

from nixery_core.errors import InvalidConfig
from nixery_core.model.image import CustomFile

_MAX_NAME = 255
"""Longest name in a directory, bytes (NAME_MAX of Linux filesystems)."""
_WHITEOUT = b".wh."


def by_name(files: Iterable[CustomFile]) -> dict[bytes, CustomFile]:
    """Return *files* by their names relative to the root of the image.

    Raises:
        InvalidConfig: For two files of one path, a file below a file, a name that is too long or
            that layers give a meaning (``.wh.``: image-spec, layer.md, "Whiteouts"), a target
            that no link can have, or something else than a directory in the place of ``/nix``.
    """
    named: dict[bytes, CustomFile] = {}
    for file in files:
        name = _encoded(file.path, file)[1:]
        if name in named:
            raise InvalidConfig(f"there are two custom files {file.path}", hint="leave one of them")
        _check_name(name, file)
        if file.target is not None:
            target = _encoded(file.target, file)
            if not target or b"\0" in target:
                raise InvalidConfig(f"the custom link {file.path} has no usable target: {file.target!r}")
        named[name] = file
    for name, file in named.items():
        for parent in parents(name):
            above = named.get(parent)
            if above is not None and not is_directory(above):
                raise InvalidConfig(
                    f"the custom file {file.path} is below {above.path}, which is not a directory",
                    hint="leave one of them",
                )
    return named


def is_directory(file: CustomFile) -> bool:
    """Tell whether *file* asks for a directory."""
    return file.content is None and file.target is None


def parents(name: bytes) -> list[bytes]:
    """Return the directories above *name*, the outermost first.

    >>> parents(b"etc/ssl/certs")
    [b'etc', b'etc/ssl']
    """
    parts = name.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _check_name(name: bytes, file: CustomFile) -> None:
    for part in name.split(b"/"):
        if len(part) > _MAX_NAME:
            raise InvalidConfig(f"the custom file {file.path} has a name of more than {_MAX_NAME} bytes")
        if part.startswith(_WHITEOUT):
            raise InvalidConfig(
                f"the custom file {file.path} has a name that begins with .wh.",
                hint="layers use such names to delete files; choose another one",
            )
    if name in (b"nix", b"nix/store") and not is_directory(file):
        raise InvalidConfig(f"the custom file {file.path} takes the place of the Nix store", hint="choose another path")


def _encoded(text: str, file: CustomFile) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidConfig(f"the custom file {file.path!r} has a name that is not text: {text!r}") from error

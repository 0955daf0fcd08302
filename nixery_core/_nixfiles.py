"""Where the Nix expressions of this library are, and which version of them."""

from __future__ import annotations

from pathlib import Path

from nixery_core._fields import hash_fields
from nixery_core.errors import NixError

_USED = ("load.nix", "objections.nix", "resolve.nix")


def nix_folder() -> Path:
    """Return the folder of the Nix expressions: in the installed package, or else in the checkout.

    Raises NixError where neither has them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_nix", package.parent / "nix"):
        if all((folder / name).is_file() for name in _USED):
            return folder
    raise NixError(
        f"the Nix expressions of nixery_core are not installed beside {package}",
        hint="install nixery-core again, as files and not as a zip archive",
    )


def nix_file(name: str) -> Path:
    """Return the path of one expression, by its path relative to the folder ``nix``; raises NixError.

    >>> nix_file("resolve.nix").name
    'resolve.nix'
    """
    path = nix_folder() / name
    if not path.is_file():
        raise NixError(f"the Nix expression {name} is missing in {path.parent}", hint="install nixery-core again")
    return path


def expressions_hash() -> str:
    """Return 64 hexadecimal characters that change with the expressions that names are looked up by."""
    try:
        contents = [part for name in _USED for part in (name, nix_file(name).read_bytes())]
    except OSError as error:
        raise NixError(f"the Nix expressions of nixery_core cannot be read: {error}") from error
    return hash_fields("nix expressions", contents)

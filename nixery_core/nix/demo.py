"""A small package set that builds anywhere, to try the library and to test with."""

from __future__ import annotations

import os
from pathlib import Path

from nixery_core._nixfiles import nix_file
from nixery_core.nix.client import Nix

_HOST_PATHS = ("/bin", "/usr", "/lib", "/lib64")


def demo_path() -> Path:
    """Return the folder of the demo package set, for :class:`~nixery_core.sources.LocalPath`.

    Its packages are listed in its ``default.nix``: ``hello`` runs with nothing but its closure,
    ``toolbox`` has three outputs, ``editor-small`` and ``editor-large`` collide, ``fails`` fails.

    >>> (demo_path() / "default.nix").is_file()
    True
    """
    return nix_file("demo/default.nix").parent


def demo_nix(store_root: str | os.PathLike[str]) -> Nix:
    """Return a Nix that builds the demo in a store of its own below the folder *store_root*.

    It needs Nix, a shell and a few of the usual tools, but no network, no configuration, no root
    and no build users.  The builds see the programs of the machine: the demo has no compiler of
    its own.
    """
    visible = [path for path in _HOST_PATHS if Path(path).exists()]
    return Nix(
        store=Path(store_root),
        options={
            "build-users-group": "",
            "substituters": "",
            "sandbox": "true",
            "sandbox-paths": " ".join(visible),
        },
    )

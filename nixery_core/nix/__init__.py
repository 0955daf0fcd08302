"""The only part of the library that calls the Nix command line."""

from nixery_core.nix.client import Nix

__all__ = ["Nix"]

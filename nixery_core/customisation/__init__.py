"""The top layer of an image: links to the packages' files, system directories and files, custom files."""

from nixery_core.customisation.layer import CUSTOMISATION_VERSION, Customisation, customise

__all__ = ["CUSTOMISATION_VERSION", "Customisation", "customise"]

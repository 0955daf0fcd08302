"""How Sphinx builds the documentation; run by ``nox -s docs``."""

from importlib import metadata

project = "nixery_core"
author = "The nixery_core maintainers"
copyright = "The nixery_core maintainers"
release = metadata.version("nixery-core")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"nixery_core {release}"

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

"""The web page of a registry: compose an image, see its layers, follow builds.

.. code-block:: python

    from nixery_core.server import registry_app
    from nixery_core.server.page import Page

    page = Page(builder)
    app = registry_app(builder, on_build=page.on_build, routes=page.routes)
    page.watch(app.state.builds)

Everything is made on the server: the page works without scripts, and the one script it has makes it
livelier.  It loads nothing from other hosts.
"""

from nixery_core.server.page.names import IndexNames, PackageNames, SortedNames
from nixery_core.server.page.pages import Page

__all__ = ["IndexNames", "PackageNames", "Page", "SortedNames"]

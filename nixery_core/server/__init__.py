"""A registry that builds the images it is asked for; needs the extra ``server``.

.. code-block:: python

    from nixery_core.server import registry_app

    app = registry_app(builder)
"""

from nixery_core.server.access import (
    AccessRequest,
    Allowed,
    Authorise,
    Challenge,
    Denied,
    basic_auth,
    basic_credentials,
    bearer_auth,
)
from nixery_core.server.app import registry_app
from nixery_core.server.builds import Build, Builds, BuildState

__all__ = [
    "AccessRequest",
    "Allowed",
    "Authorise",
    "Build",
    "BuildState",
    "Builds",
    "Challenge",
    "Denied",
    "basic_auth",
    "basic_credentials",
    "bearer_auth",
    "registry_app",
]

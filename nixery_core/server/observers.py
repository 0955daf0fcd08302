"""Who follows builds: several observers in one, and one that writes a log."""

from __future__ import annotations

import logging

from nixery_core.errors import NixeryError
from nixery_core.events import BuildEvent
from nixery_core.server.builds import Build, BuildObserver, BuildState

_log = logging.getLogger("nixery_core.builds")


def all_of(*observers: BuildObserver) -> BuildObserver:
    """Return an observer that tells each of *observers*, in order."""

    def observe(build: Build, event: BuildEvent | None) -> None:
        for observer in observers:
            observer(build, event)

    return observe


def log_builds(build: Build, event: BuildEvent | None) -> None:
    """Log the beginning and the end of a build, with ``nixery_core.builds``."""
    if event is not None:
        return
    name = f"{build.spec.name}:{build.spec.tag}"
    about = {
        "build": build.number,
        "image": name,
        "platform": str(build.spec.platform),
        "state": build.state.value,
        "revision": build.pin.revision,
    }
    if not build.over:
        _log.info("build %d of %s is %s", build.number, name, build.state.value, extra=about)
        return
    about["build_seconds"] = round((build.finished or 0.0) - (build.started or build.queued), 3)
    if build.image is not None:
        about |= {"digest": str(build.image.descriptor.digest), "cached": build.image.cached}
        _log.info("build %d of %s is done", build.number, name, extra=about)
    elif build.state is BuildState.CANCELLED:
        _log.info("build %d of %s was cancelled: %s", build.number, name, build.error, extra=about)
    elif isinstance(build.error, NixeryError):
        _log.warning("build %d of %s failed: %s", build.number, name, build.error.diagnostics(), extra=about)
    else:
        # a mistake of ours: where it is has to be found
        _log.error("build %d of %s failed", build.number, name, extra=about, exc_info=build.error)

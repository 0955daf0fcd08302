"""What the page says of builds and plans: plain values for its templates."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs

from nixery_core.errors import Cancelled, NixBuildError, NixeryError, NixTimeout, PackageError
from nixery_core.server.builds import Build, BuildState
from nixery_core.server.page.html import bytes_text
from nixery_core.server.page.plans import Plan, PlanSummary
from nixery_core.server.page.progress import Board, Standing, clean
from nixery_core.server.refusals import refusal_of
from nixery_core.treemap import Box, treemap_svg

_STATES = {
    BuildState.QUEUED: "waiting",
    BuildState.RUNNING: "running",
    BuildState.DONE: "done",
    BuildState.FAILED: "failed",
    BuildState.CANCELLED: "cancelled",
}


@attrs.frozen(kw_only=True)
class Failure:
    """Why something was not built, for a person."""

    summary: str
    """One line."""
    text: str
    """All that is known, line by line."""
    log: Sequence[str]
    """What builders printed, oldest first."""


@attrs.frozen(kw_only=True)
class BuildView:
    """One build at one moment."""

    number: int
    name: str
    tag: str
    platform: str
    revision: str | None
    state: str
    """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
    begun: float
    """When it was asked for, seconds since the epoch."""
    seconds: float
    """How long it ran, or runs."""
    waiting: int
    """How many requests wait for it."""
    standing: Standing | None
    """How far it is; None where nobody knows any more."""
    digest: str | None
    size: int | None
    layers: int
    cached: bool
    failure: Failure | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("waiting", "running")


def build_view(build: Build, board: Board, *, now: float | None = None) -> BuildView:
    """Return what is shown of a build."""
    now = time.time() if now is None else now
    standing = board.standing(build.number)
    end = build.finished or now
    image = build.image
    return BuildView(
        number=build.number,
        name=build.spec.name,
        tag=build.spec.tag,
        platform=str(build.spec.platform),
        revision=build.pin.revision,
        state=_STATES[build.state],
        begun=build.queued,
        seconds=max(end - (build.started or end), 0.0),
        waiting=build.waiting,
        standing=standing,
        digest=str(image.descriptor.digest) if image else None,
        size=image.size if image else None,
        layers=len(image.layers) if image else 0,
        cached=image.cached if image else False,
        failure=failure_view(build.error, standing) if build.error is not None else None,
    )


def failure_view(error: BaseException, standing: Standing | None) -> Failure:
    """Return what is told of an error; what is not of this library is told to the log alone."""
    if not isinstance(error, NixeryError):
        return Failure(summary="the registry made a mistake", text="Its log says which.", log=())
    if not isinstance(error, (PackageError, NixBuildError, NixTimeout, Cancelled)) and _is_private(error):
        return Failure(summary=_public(error), text="The log of the registry says why.", log=())
    lines = [clean(line) for line in error.diagnostics().splitlines()]
    tail = error.log_tail if isinstance(error, (NixBuildError, NixTimeout)) else None
    # the text has the tail of the log already
    log = standing.log if standing is not None and tail is not None and len(standing.log) > len(tail) else ()
    return Failure(
        summary=clean(str(error).splitlines()[0]) if str(error) else "failed", text="\n".join(lines), log=log
    )


def _is_private(error: NixeryError) -> bool:
    # it may name buckets and paths of the operator: the registry API does not tell it either
    return refusal_of(error).status >= 500


def _public(error: NixeryError) -> str:
    return refusal_of(error).message


@attrs.frozen(kw_only=True)
class PlanView:
    """One plan at one moment."""

    name: str
    tag: str
    state: str
    """``waiting``, ``running``, ``done`` or ``failed``."""
    standing: Standing
    summary: PlanSummary | None
    failure: Failure | None
    picture: str
    """An SVG element; empty as long as there is none."""
    stored: int
    """How many layers are stored already."""
    stored_size: int
    """Sum of their blobs, bytes."""
    new_nar_size: int
    """Size of the store paths of the others, bytes."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("waiting", "running")


def plan_view(plan: Plan) -> PlanView:
    """Return what is shown of a plan."""
    standing = plan.progress.standing()
    summary, error = plan.summary, plan.error
    state = "done" if summary else "failed" if error is not None else "running" if plan.running else "waiting"
    parts = summary.parts if summary else ()
    return PlanView(
        name=plan.spec.name,
        tag=plan.spec.tag,
        state=state,
        standing=standing,
        summary=summary,
        failure=failure_view(error, standing) if error is not None else None,
        picture=_picture(plan.spec.name, summary) if summary else "",
        stored=sum(part.size is not None for part in parts),
        stored_size=sum(part.size or 0 for part in parts),
        new_nar_size=sum(part.nar_size for part in parts if part.size is None),
    )


def _picture(name: str, summary: PlanSummary) -> str:
    boxes = [
        Box(
            part.label + (f" and {len(part.packages) - 1} more" if len(part.packages) > 1 else ""),
            part.nar_size,
            bytes_text(part.nar_size),
            "stored" if part.size is not None else "new",
        )
        for part in summary.parts
    ]
    return treemap_svg(
        boxes,
        title=f"The {len(boxes)} layers of {name}",
        description="Each box is a layer; its area is the unpacked size. The table below has the same numbers.",
        identity="layers",
    )

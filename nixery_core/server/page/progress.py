"""How far builds are, from their events: what the page shows while one runs."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence

import attrs

from nixery_core import events
from nixery_core._redact import redact
from nixery_core.events import BuildEvent
from nixery_core.server.builds import Build
from nixery_core.server.stages import FIRST, stage_after

MOST_LINES = 200
_MOST_CHARACTERS = 2000
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_WORDS = {
    "evaluate": "looking up the packages",
    "realise": "building and fetching packages",
    "plan": "planning the layers",
    "write": "writing the layers",
}


def clean(text: str) -> str:
    r"""Return a line of a log without colours, control characters and secrets.

    >>> clean("\x1b[31mhttps://me:x@example.org\x07")
    'https://***@example.org'
    """
    return redact(_CONTROL.sub("", text[:_MOST_CHARACTERS]))


@attrs.frozen(kw_only=True)
class Standing:
    """How far something is at one moment."""

    stage: str
    """For a person."""
    detail: str
    """What happens now, for a person; may be empty."""
    done: int
    expected: int
    """What *done* counts towards; 0 where nobody knows."""
    log: Sequence[str]
    """The last lines that builders printed, oldest first."""


class Progress:
    """Follows the events of one build or plan; may be looked at by other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stage = FIRST
        self._detail = ""
        self._done = self._expected = 0
        self._log: deque[str] = deque(maxlen=MOST_LINES)
        self._layers: dict[str, int] = {}

    def follow(self, event: BuildEvent) -> None:
        """Take note of an event."""
        with self._lock:
            stage = stage_after(event)
            if stage is not None:
                self._stage, self._detail, self._done, self._expected = stage, "", 0, 0
            self._take(event)

    def standing(self) -> Standing:
        """Return how far it is."""
        with self._lock:
            return Standing(
                stage=_WORDS[self._stage],
                detail=self._detail,
                done=min(self._done, self._expected),
                expected=self._expected,
                log=tuple(self._log),
            )

    def _take(self, event: BuildEvent) -> None:
        match event:
            case events.NixBuildStarted(derivation=derivation):
                self._detail = f"building {_short(derivation)}"
            case events.NixPhase(derivation=derivation, phase=phase):
                self._detail = f"{_short(derivation)}: {clean(phase)}"
            case events.NixLogLine(line=line):
                self._log.append(clean(line))
            case events.NixProgress(activity=activity, done=done, expected=expected):
                self._done, self._expected = done, expected
                if activity == "copy":
                    self._detail = f"fetching {expected} packages"
            case events.LayersPlanned(layers=layers):
                self._expected = layers + 1
            case events.LayerBuilt() | events.LayerCached():
                self._done += 1
                self._detail = f"{self._done} of {self._expected} layers"


class Board:
    """Remembers how far each build is; give :meth:`on_build` to the registry.

    Args:
        most: How many builds are remembered; those that are over go first.
    """

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._progress: OrderedDict[int, Progress] = OrderedDict()

    def on_build(self, build: Build, event: BuildEvent | None) -> None:
        """Follow a build: a :data:`~nixery_core.server.builds.BuildObserver`."""
        progress = self._progress.get(build.number)
        if progress is None:
            with self._lock:
                progress = self._progress.setdefault(build.number, Progress())
                while len(self._progress) > self._most:
                    self._progress.popitem(last=False)
        if event is not None:
            progress.follow(event)

    def standing(self, number: int) -> Standing | None:
        """Return how far a build is, or None where it is not remembered."""
        progress = self._progress.get(number)
        return None if progress is None else progress.standing()


def _short(derivation: str) -> str:
    name = derivation.rpartition("/")[2].removesuffix(".drv")
    return clean(name[33:] if len(name) > 33 and name[32] == "-" else name)

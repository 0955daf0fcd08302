"""Read what Nix prints with ``--log-format internal-json``: events, errors, the last lines of builds."""

from __future__ import annotations

import json
import re
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, TypeGuard

from nixery_core._redact import redact
from nixery_core.events import EventCallback, NixBuildStarted, NixLogLine, NixPhase, NixProgress

TAIL = 25
"""How many of the last lines an error shows."""

STAGE = "trace: nixery-core: "
"""How the traces of nix/load.nix begin."""

_MAX_SHOWN = 2000
_MAX_ERRORS = 100
_MAX_BUILDS = 64
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x00-\x08\x0b-\x1f\x7f]")
_CUT_URL = re.compile(r"://\S*\Z")
_ERROR = re.compile(r"(?:^|\n)\s*error:\s*")
_NOISE = "(use '--show-trace'"

# libutil/logging.hh: ActivityType and ResultType
_ACTIVITY_COPY_PATHS = 103
_ACTIVITY_BUILDS = 104
_ACTIVITY_BUILD = 105
_RESULT_LOG_LINE = 101
_RESULT_PHASE = 104
_RESULT_PROGRESS = 105
_RESULT_POST_BUILD_LINE = 107
_LEVEL_INFO = 3

_PROGRESS = {_ACTIVITY_BUILDS: "build", _ACTIVITY_COPY_PATHS: "copy"}


def plain(text: str) -> str:
    r"""Return *text* without colours, control characters and secrets, shortened to what a person reads.

    >>> plain("\x1b[31;1merror:\x1b[0m no\r")
    'error: no'
    """
    shown = _ESCAPE.sub("", text[: 2 * _MAX_SHOWN])[:_MAX_SHOWN]
    if len(text) > len(shown):
        # the mask of a URL needs its "@", which may have been cut off
        shown = _CUT_URL.sub("", shown)
    return redact(shown)


class NixLog:
    """Reads the lines of one Nix command, tells them as events, and keeps what errors need.

    Memory is bounded whatever Nix prints; no input makes it raise.
    """

    def __init__(self, on_event: EventCallback) -> None:
        self._on_event = on_event
        self._activities: dict[int, tuple[int, str]] = {}
        self._progress: dict[int, tuple[int, ...]] = {}
        self._builds: OrderedDict[str, deque[str]] = OrderedDict()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self.errors: deque[str] = deque(maxlen=_MAX_ERRORS)
        """What Nix said of each error, without traces, oldest first."""
        self.stages: set[str] = set()
        """How far nix/load.nix came: ``started``, ``fetched``, ``loaded``."""

    def feed(self, raw: bytes) -> None:
        """Read one line."""
        line = raw.decode(errors="replace")
        if not line.startswith("@nix "):
            return self._say(line)
        try:
            message = json.loads(line[5:])
        except (ValueError, RecursionError):
            return self._say(line)
        if not isinstance(message, dict):
            return self._say(line)
        action, identity = message.get("action"), message.get("id")
        if action == "msg":
            self._message(message)
        elif not _is_int(identity):
            pass
        elif action == "start":
            self._start(identity, message)
        elif action == "stop":
            self._activities.pop(identity, None)
            self._progress.pop(identity, None)
        elif action == "result":
            self._result(identity, message)
        return None

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of whatever was printed, oldest first."""
        return tuple(self._tail)

    def build_tail(self, derivation: str) -> tuple[str, ...]:
        """Return the last lines of the build log of a derivation; empty where there are none."""
        return tuple(self._builds.get(derivation, ()))

    def running(self) -> tuple[str, ...]:
        """Return the derivations that are being built."""
        return tuple(name for kind, name in self._activities.values() if kind == _ACTIVITY_BUILD and name)

    def _say(self, text: str) -> None:
        for part in _ESCAPE.sub("", text).splitlines():
            line = plain(part)
            if line.strip():
                self._tail.append(line)
                self._on_event(NixLogLine(derivation=None, line=line))

    def _message(self, message: Mapping[str, Any]) -> None:
        text, level = message.get("msg"), message.get("level")
        if not isinstance(text, str) or (_is_int(level) and level > _LEVEL_INFO):
            return None
        if text.startswith(STAGE):
            self.stages.add(text.removeprefix(STAGE).strip())
            return None
        if text.startswith(_NOISE):
            return None
        raw = message.get("raw_msg")
        bare = _ESCAPE.sub("", text)
        if isinstance(raw, str):
            self.errors.append(plain(raw).strip())
        elif level == 0 and _ERROR.match(bare):
            self.errors.append(plain(_ERROR.split(bare)[-1]).strip())
        else:
            return self._say(bare)
        # an error ends in an exception, or is handled; it is no news on its own
        self._tail.extend(plain(part) for part in bare.splitlines() if part.strip())
        return None

    def _start(self, identity: int, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if not _is_int(kind):
            return
        fields = message.get("fields")
        name = fields[0] if isinstance(fields, list) and fields and isinstance(fields[0], str) else ""
        self._activities[identity] = (kind, name)
        if kind == _ACTIVITY_BUILD and name:
            self._builds[name] = deque(maxlen=TAIL)
            if len(self._builds) > _MAX_BUILDS:
                self._builds.popitem(last=False)
            self._on_event(NixBuildStarted(derivation=name))

    def _result(self, identity: int, message: Mapping[str, Any]) -> None:
        kind, name = self._activities.get(identity, (0, ""))
        result, fields = message.get("type"), message.get("fields")
        if not isinstance(fields, list) or not fields:
            return
        if result in (_RESULT_LOG_LINE, _RESULT_POST_BUILD_LINE) and isinstance(fields[0], str):
            line = plain(fields[0])
            self._builds.setdefault(name, deque(maxlen=TAIL)).append(line)
            self._tail.append(line)
            self._on_event(NixLogLine(derivation=name or None, line=line))
        elif result == _RESULT_PHASE and isinstance(fields[0], str) and name:
            self._on_event(NixPhase(derivation=name, phase=plain(fields[0])))
        elif result == _RESULT_PROGRESS and kind in _PROGRESS and len(fields) >= 4 and all(map(_is_int, fields[:4])):
            values = tuple(fields[:4])
            if self._progress.get(identity) != values:
                self._progress[identity] = values
                done, expected, running, failed = values
                self._on_event(
                    NixProgress(activity=_PROGRESS[kind], done=done, expected=expected, running=running, failed=failed)
                )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)

"""Nothing that a builder prints can break the reader of Nix's log."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.events import BuildEvent, NixLogLine
from nixery_core.nix._log import TAIL, NixLog

pytestmark = pytest.mark.property

texts = st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=8)
values = st.none() | st.booleans() | st.integers() | st.just(1.5) | texts | st.lists(st.integers() | texts, max_size=4)
kinds = st.sampled_from([100, 101, 103, 104, 105, 106, 107])
messages = st.fixed_dictionaries(
    {"action": st.sampled_from(["start", "stop", "result", "msg"])},
    optional={
        "id": st.integers(0, 3) | values,
        "type": kinds | values,
        "fields": st.lists(st.integers(0, 9) | texts, max_size=5) | values,
        "level": st.integers(0, 7) | values,
        "msg": texts | values,
        "raw_msg": texts | values,
    },
)
lines = st.binary(max_size=60) | messages.map(lambda message: b"@nix " + json.dumps(message).encode())


@given(st.lists(lines, max_size=12))
def test_no_line_breaks_the_reader(fed: list[bytes]) -> None:
    """Any lines are read without an exception, into bounded tails and events that pickle."""
    events: list[BuildEvent] = []
    log = NixLog(events.append)
    for line in fed:
        log.feed(line)
    assert pickle.loads(pickle.dumps(events)) == events
    assert len(log.tail()) <= TAIL
    for event in events:
        if isinstance(event, NixLogLine):
            assert not set(event.line) & {chr(code) for code in range(32) if code != 9}

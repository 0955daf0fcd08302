"""Keys: every name has one, and none leads out of the storage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.errors import InvalidKey
from nixery_core.model.names import check_name, check_tag
from nixery_core.storage.keys import check_key, parse_ref_key, ref_key

pytestmark = pytest.mark.property

words = st.text("abz019", min_size=1, max_size=4)
components = st.builds(
    lambda first, rest: first + "".join(rest),
    words,
    st.lists(st.builds(str.__add__, st.sampled_from([".", "_", "__", "-", "---"]), words), max_size=2),
)


@given(st.lists(components, min_size=1, max_size=4).map("/".join), st.text("aZ09_.-", min_size=1, max_size=9))
def test_every_name_and_tag_has_a_key(name: str, tag: str) -> None:
    """Each image name and tag has a key of its own, from which it is read back."""
    tag = check_tag("t" + tag)
    assert parse_ref_key(ref_key(check_name(name), tag)) == (name, tag)


@given(st.text("ab./\\\0\n ", max_size=8))
def test_no_key_leads_out(text: str) -> None:
    """What passes for a key names one file inside the storage, and is the only key of that file."""
    root = Path("/storage")
    try:
        check_key(text)
    except InvalidKey:
        return
    path = Path("/storage/" + text)
    assert path.is_relative_to(root)
    assert path != root
    assert str(path.relative_to(root)) == text
    assert ".." not in path.parts

"""Properties of the page and of what surrounds the registry, for all that clients can send."""

import urllib.parse
import xml.etree.ElementTree as ET

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixery_core.model.names import check_name
from nixery_core.server.observed import route_of
from nixery_core.server.page.composition import read_composition
from nixery_core.server.page.names import SortedNames
from nixery_core.server.page.progress import clean
from nixery_core.server.request_id import request_id
from nixery_core.treemap import Box, squarify, treemap_svg

# the first text of a session waits for the table of Unicode
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["git", "shell", "arm64", "python3Packages.six", "_1password", "a/b", ""]
)
LATIN = st.text(st.characters(max_codepoint=255), max_size=200)


@calm
@given(
    st.dictionaries(st.sampled_from(["p", "add", "remove", "shell", "platform", "tag"]), st.lists(TEXTS, min_size=1))
)
def test_whatever_is_typed_is_a_name_or_a_problem(query):
    """A composition never raises; its name is one that clients accept, and its query gives it back."""
    found = read_composition(query)
    if found.name:
        check_name(found.name)
    again = read_composition(urllib.parse.parse_qs(found.query()))
    assert (again.name, again.tag) == (found.name, found.tag)


@calm
@given(st.lists(st.floats(0, 1e15, allow_subnormal=False), max_size=60), st.integers(1, 2000), st.integers(1, 2000))
def test_tiles_fill_the_picture(sizes, width, height):
    """Whatever the sizes, tiles lie inside and their areas are those of the picture."""
    tiles = squarify([Box(str(number), size) for number, size in enumerate(sizes)], width, height)
    for tile in tiles:
        assert tile.x >= -1e-6 * width
        assert tile.y >= -1e-6 * height
        assert tile.x + tile.width <= width * (1 + 1e-6)
        assert tile.y + tile.height <= height * (1 + 1e-6)
    if tiles:
        area = sum(tile.width * tile.height for tile in tiles)
        assert abs(area - width * height) <= 1e-3 * width * height


@calm
@given(st.lists(st.tuples(st.text(max_size=30), st.integers(0, 10**12)), max_size=20), st.text(max_size=30))
def test_pictures_are_well_formed(boxes, title):
    """Whatever the labels hold, the picture is XML once control characters are gone, as they are from names."""
    drawn = treemap_svg(
        [Box(clean(label), size) for label, size in boxes], title=clean(title), description="d", identity="x"
    )
    allowed = all(character >= " " and character not in "\ufffe\uffff" for character in drawn)
    if allowed and not any("\ud800" <= character <= "\udfff" for character in drawn):
        ET.fromstring(drawn.replace("\x85", ""))


@calm
@given(LATIN)
def test_identities_do_not_spoil_a_log(text):
    """Whatever a client sends, the identity is printable ASCII without spaces, and of limited length."""
    identity = request_id({"headers": [(b"x-request-id", text.encode("latin-1"))]})
    assert 1 <= len(identity) <= 128
    assert identity.isascii()
    assert identity.isprintable()
    assert " " not in identity
    assert '"' not in identity


@calm
@given(st.text(max_size=60) | st.text(max_size=60).map(lambda text: f"/v2/{text}"))
def test_routes_are_few(path):
    """Whatever the path, its label is one of a few words."""
    words = {"base", "manifest", "blob", "tags", "referrers", "page", "health", "metrics", "other"}
    assert route_of(path) in words


@calm
@given(st.lists(st.text(min_size=1, max_size=12)), st.text(max_size=12))
def test_completions_hold_what_was_typed(names, typed):
    """Every name that is offered is known, distinct, and holds what was typed."""
    found = SortedNames.of(names).complete(typed)
    assert len(set(found)) == len(found) <= 20
    assert all(name in names and typed.strip().lower() in name.lower() for name in found)

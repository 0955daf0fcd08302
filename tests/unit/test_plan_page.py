"""The picture of a plan, as far as it needs no browser."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.cli._treemap import Rectangle, squarify
from nixery_core.cli.plan_page import plan_page
from nixery_core.image import ImagePlan, PlannedLayer
from nixery_core.layering import LayerPlan
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath

PATHS = [
    StorePath(letter * 32, f"{name}-1.0") for letter, name in zip("abcd", ("git", "curl", "zlib", "empty"), strict=True)
]
SIZES = [4_000_000, 2_000_000, 1_000_000, 0]


def image_plan(reason: str = "why") -> ImagePlan:
    """Return a plan of two layers of two paths."""
    closure = Closure([PathInfo(path, size, []) for path, size in zip(PATHS, SIZES, strict=True)], PATHS)
    plans = [LayerPlan(PATHS[:2], sum(SIZES[:2]), reason), LayerPlan(PATHS[2:], sum(SIZES[2:]), "small")]
    layers = tuple(PlannedLayer(plan=plan, layer_key="k", built=None) for plan in plans)
    return ImagePlan(spec=ImageSpec.parse("git"), revision="r1", packages=(), closure=closure, layers=layers)


class Page(HTMLParser):
    """Reads what the page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class TestPage:
    def test_each_path_is_a_rectangle_as_large_as_its_bytes(self) -> None:
        """One rectangle a store path, with an area in proportion."""
        areas = [float(r["width"] or 0) * float(r["height"] or 0) for r in Page(plan_page(image_plan())).all("rect")]
        assert len(areas) == 4
        assert areas[0] / areas[1] == pytest.approx(2, rel=0.02)
        assert areas[0] / areas[2] == pytest.approx(4, rel=0.05)
        assert areas[3] == 0

    def test_hover_and_table_say_path_size_and_reason(self) -> None:
        """What the picture shows is also there as text."""
        page = Page(plan_page(image_plan("they come together")))
        assert page.text.count("they come together") == 3
        assert f"{PATHS[0]}\n4.0 MB, layer 1: they come together" in page.text
        assert "2 layers, 4 store paths, 7.0 MB, revision r1" in page.text
        assert [row["scope"] for row in page.all("th")] == ["col"] * 4

    def test_text_is_escaped(self) -> None:
        """A reason with markup in it stays text."""
        page = Page(plan_page(image_plan("<script>alert('&')</script>")))
        assert page.all("script") == []
        assert "<script>alert('&')</script>" in page.text

    def test_nothing_is_fetched(self) -> None:
        """The page names no other file and no host, and runs no code."""
        text = plan_page(image_plan())
        assert "http" not in text
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in Page(text).tags}
        assert not any(name in ("src", "href") for _, attributes in Page(text).tags for name in attributes)

    def test_layers_have_colours_of_their_own(self) -> None:
        """Two layers differ in colour, and the table has the same colours."""
        page = Page(plan_page(image_plan()))
        fills = [group["fill"] for group in page.all("g")]
        assert len(set(fills)) == 2
        assert [f"background:{fill}" for fill in fills] == [swatch["style"] for swatch in page.all("span")]

    def test_an_image_without_paths(self) -> None:
        """An empty plan is a page with an empty picture."""
        empty = ImagePlan(spec=ImageSpec.parse("git"), revision=None, packages=(), closure=Closure([], []), layers=())
        assert Page(plan_page(empty)).all("rect") == []


@given(
    st.lists(st.integers(0, 1 << 40), max_size=40).map(lambda sizes: sorted(sizes, reverse=True)),
    st.floats(1, 2000),
    st.floats(1, 2000),
)
def test_a_treemap_fills_its_place(sizes: list[int], width: float, height: float) -> None:
    """Areas are in proportion to sizes, and no rectangle leaves the place."""
    places = squarify(sizes, Rectangle(0, 0, width, height))
    assert len(places) == len(sizes)
    total = sum(sizes) or 1
    for size, place in zip(sizes, places, strict=True):
        assert place.width * place.height == pytest.approx(
            size / total * width * height, rel=1e-6, abs=1e-6 * width * height
        )
        assert min(place.x, place.y) >= -1e-6
        assert place.x + place.width <= width * (1 + 1e-6)
        assert place.y + place.height <= height * (1 + 1e-6)

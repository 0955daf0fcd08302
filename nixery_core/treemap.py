"""A treemap: boxes whose areas stand for sizes, as an SVG picture.

The picture holds no style, no script and no address: its classes are styled by the page that holds
it, also under a strict Content-Security-Policy.  Pages give the numbers in a table besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

import attrs

_CHARACTER = 8.2
"""Width of a character of a label, in units of the picture; a little more than it takes."""
_INVISIBLE = 0.01
"""Area of a box that nobody sees."""
_LEAST = 6
"""Fewer characters say nothing."""
_LINE = 16.0
_PADDING = 6.0


@attrs.frozen
class Box:
    """Something with a size."""

    label: str
    """What is written into it, where there is room."""
    size: float
    """Its share of the picture; boxes without size, and those too small to be seen, are left out."""
    detail: str = ""
    """What a pointer that rests on it shows, and the second line of its label."""
    kind: str = ""
    """A word for its class in the picture."""


@attrs.frozen
class Tile:
    """A box and where it is."""

    box: Box
    x: float
    y: float
    width: float
    height: float


def squarify(boxes: Iterable[Box], width: float, height: float) -> list[Tile]:
    """Return boxes as tiles that fill a rectangle, each as square as can be, the largest first.

    Source: Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000.

    >>> [(tile.box.label, tile.width, tile.height) for tile in squarify([Box("a", 3), Box("b", 1)], 4, 1)]
    [('a', 3.0, 1.0), ('b', 1.0, 1.0)]
    """
    boxes = [box for box in boxes if box.size > 0]
    if not boxes or width <= 0 or height <= 0:
        return []
    # what no eye can see would be lost to rounding
    least = _INVISIBLE * sum(box.size for box in boxes) / (width * height)
    wanted = sorted((box for box in boxes if box.size >= least), key=lambda box: -box.size)
    scale = width * height / sum(box.size for box in wanted)
    tiles: list[Tile] = []
    x = y = 0.0
    while wanted:
        side = min(width, height)
        count = _row_length([box.size * scale for box in wanted], side)
        row, wanted = wanted[:count], wanted[count:]
        # never more than there is, whatever rounding does; and all of it in the end
        rest = max(width, height)
        thickness = min(sum(box.size for box in row) * scale / side, rest) if wanted else rest
        tiles += _row(row, x, y, side, thickness, upright=width >= height)
        if width >= height:
            x, width = x + thickness, width - thickness
        else:
            y, height = y + thickness, height - thickness
    return tiles


def _row_length(areas: Sequence[float], side: float) -> int:
    count, total = 1, areas[0]
    best = _worst(areas[0], areas[0], total, side)
    while count < len(areas):
        total += areas[count]
        # sorted, so the first is the largest and the last the smallest
        worst = _worst(areas[0], areas[count], total, side)
        if worst > best:
            break
        best, count = worst, count + 1
    return count


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    square = side * side
    return max(square * largest / (total * total), total * total / (square * smallest))


def _row(boxes: Sequence[Box], x: float, y: float, side: float, thickness: float, *, upright: bool) -> Iterator[Tile]:
    total, at = sum(box.size for box in boxes), 0.0
    for box in boxes:
        length = side * box.size / total
        if upright:
            yield Tile(box, x, y + at, thickness, length)
        else:
            yield Tile(box, x + at, y, length, thickness)
        at += length


def treemap_svg(
    boxes: Iterable[Box],
    *,
    title: str,
    description: str,
    width: int = 960,
    height: int = 420,
    identity: str = "treemap",
) -> str:
    """Return a treemap as an ``<svg>`` element, to be put into a page as it is.

    Args:
        boxes: What is drawn.
        title: What the picture is, for those who hear it.
        description: What it shows, likewise.
        width: In units; the page scales it.
        height: Likewise.
        identity: Of the element in its page.

    >>> 'class="tile new"' in treemap_svg([Box("a<b", 1, kind="new")], title="t", description="d")
    True
    """
    parts = [
        f'<svg class="treemap" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{escape(identity)}-title {escape(identity)}-description">',
        f'<title id="{escape(identity)}-title">{escape(title)}</title>',
        f'<desc id="{escape(identity)}-description">{escape(description)}</desc>',
    ]
    parts += [_tile(tile) for tile in squarify(boxes, width, height)]
    return "".join([*parts, "</svg>"])


def _tile(tile: Tile) -> str:
    box = tile.box
    hover = f"{box.label}: {box.detail}" if box.detail else box.label
    parts = [
        f'<g class="tile{" " + escape(box.kind) if box.kind else ""}"><title>{escape(hover)}</title>',
        f'<rect x="{tile.x + 1:.1f}" y="{tile.y + 1:.1f}" width="{max(tile.width - 2, 0.5):.1f}" '
        f'height="{max(tile.height - 2, 0.5):.1f}" rx="{min(4.0, tile.width / 8, tile.height / 8):.1f}"/>',
    ]
    for number, (kind, words) in enumerate(_lines(tile)):
        parts.append(
            f'<text class="{kind}" x="{tile.x + _PADDING:.1f}" y="{tile.y + _LINE * (number + 1) + 1:.1f}">'
            f"{escape(words)}</text>"
        )
    return "".join([*parts, "</g>"])


def _lines(tile: Tile) -> list[tuple[str, str]]:
    room, label, detail = int((tile.width - 2 * _PADDING) / _CHARACTER), tile.box.label, tile.box.detail
    rows = int((tile.height - _PADDING) / _LINE)
    if rows < 1 or (len(label) > room and room < _LEAST):
        return []
    lines = [("label", label if len(label) <= room else label[: room - 1] + "…")]
    # half a number is a wrong one
    if detail and rows > 1 and len(detail) <= room:
        lines.append(("detail", detail))
    return lines

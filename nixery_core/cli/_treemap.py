"""Rectangles whose areas are sizes: a squarified treemap."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen
class Rectangle:
    """A place in the picture."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, margin: float) -> Rectangle:
        """Return the rectangle without *margin* on each side, or with nothing left."""
        width, height = max(0.0, self.width - 2 * margin), max(0.0, self.height - 2 * margin)
        return Rectangle(self.x + (self.width - width) / 2, self.y + (self.height - height) / 2, width, height)


def squarify(sizes: Sequence[float], place: Rectangle) -> list[Rectangle]:
    """Fill *place* with one rectangle for each size, in proportion, as near to squares as rows allow.

    Sizes come in falling order; a size of 0 gets a rectangle without area.
    Source: Bruls, Huizing, van Wijk, "Squarified Treemaps" (2000).

    >>> [(r.width, r.height) for r in squarify([4, 4], Rectangle(0, 0, 4, 2))]
    [(2.0, 2.0), (2.0, 2.0)]
    """
    total = sum(sizes)
    scale = place.width * place.height / total if total else 0.0
    result: list[Rectangle] = []
    start = 0
    while start < len(sizes):
        side = min(place.width, place.height)
        end = start + 1
        while end < len(sizes) and _worst(sizes[start : end + 1], scale, side) <= _worst(sizes[start:end], scale, side):
            end += 1
        row = sizes[start:end]
        area = sum(row) * scale
        depth = min(area / side, max(place.width, place.height)) if side else 0.0
        along = 0.0
        for size in row:
            length = size * scale / depth if depth else 0.0
            if place.width >= place.height:
                result.append(Rectangle(place.x, place.y + along, depth, length))
            else:
                result.append(Rectangle(place.x + along, place.y, length, depth))
            along += length
        if place.width >= place.height:
            place = Rectangle(place.x + depth, place.y, place.width - depth, place.height)
        else:
            place = Rectangle(place.x, place.y + depth, place.width, place.height - depth)
        start = end
    return result


def _worst(row: Sequence[float], scale: float, side: float) -> float:
    """Return the largest ratio of two sides in a row of rectangles along *side*."""
    area, smallest = sum(row) * scale, min(row) * scale
    if not smallest or not side:
        return float("inf")
    return max(side * side * max(row) * scale / area**2, area**2 / (side * side * smallest))

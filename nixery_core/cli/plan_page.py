"""The plan of an image as a page: a treemap of its store paths, and the same as a table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from nixery_core.cli._treemap import Rectangle, squarify
from nixery_core.cli.text import bytes_text
from nixery_core.image import ImagePlan, PlannedLayer

_WIDTH, _HEIGHT = 1200, 700
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1200px; padding: 0 1rem;
  background: #fff; color: #1b1f24; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; background: #1b1f24; }
rect.path { stroke: #fff; stroke-opacity: .65; stroke-width: .6; }
rect.path:hover { stroke: #000; stroke-opacity: 1; stroke-width: 2.5; }
text { fill: #000; pointer-events: none; font-family: system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #d0d5da; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border: 1px solid #555; }
li, td { overflow-wrap: anywhere; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
"""


def plan_page(plan: ImagePlan) -> str:
    """Return an HTML document that needs nothing beside itself.

    Each store path is a rectangle as large as its NAR; the paths of one layer lie together and have one
    colour.  Pointing at a rectangle shows path, size, layer and reason; the table below says the same to
    readers who cannot see the picture.
    """
    name = escape(f"{plan.spec.name}:{plan.spec.tag}")
    closure = plan.closure
    summary = f"{len(plan.layers)} layers, {len(closure)} store paths, {bytes_text(closure.nar_size)}"
    if plan.revision:
        summary += f", revision {plan.revision}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Layers of {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Layers of {name}</h1>
<p>{escape(summary)}. A rectangle is a store path, as large as its bytes; a colour is a layer, 1 at the bottom.</p>
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="picture-title picture-text">
<title id="picture-title">Store paths of {name} by size and layer</title>
<desc id="picture-text">{escape(summary)}. The table below lists the same.</desc>
{"".join(_picture(plan))}</svg>
<table>
<caption>Layers, bottom first</caption>
<thead><tr><th scope="col" class="number">Layer</th><th scope="col" class="number">Size</th>\
<th scope="col">State</th><th scope="col">Why these paths are together</th></tr></thead>
<tbody>
{"".join(_rows(plan))}</tbody>
</table>
</body>
</html>
"""


def _picture(plan: ImagePlan) -> Iterator[str]:
    numbered = sorted(enumerate(plan.layers, 1), key=lambda item: (-item[1].plan.nar_size, item[0]))
    places = squarify([layer.plan.nar_size for _, layer in numbered], Rectangle(0, 0, _WIDTH, _HEIGHT))
    for (number, layer), place in zip(numbered, places, strict=True):
        sized = sorted(((plan.closure[path].nar_size, path) for path in layer.plan.paths), reverse=True)
        inner = squarify([size for size, _ in sized], place.inset(1.2))
        yield f'<g class="layer" fill="{_colour(number)}">\n'
        for (size, path), at in zip(sized, inner, strict=True):
            words = f"{path}\n{bytes_text(size)}, layer {number}: {layer.plan.reason}"
            yield (
                f'<rect class="path" x="{at.x:.2f}" y="{at.y:.2f}" width="{at.width:.2f}" height="{at.height:.2f}">'
                f"<title>{escape(words)}</title></rect>\n"
            )
            yield from _label(path.package_name, at)
        yield "</g>\n"


def _label(text: str, place: Rectangle) -> Iterator[str]:
    """Write a name where it fits; the title has it anyway."""
    size = min(16.0, place.height * 0.5, place.width / (0.62 * len(text) + 1))
    if size >= 7:
        yield (
            f'<text aria-hidden="true" x="{place.x + size * 0.4:.2f}" y="{place.y + size * 1.15:.2f}" '
            f'font-size="{size:.1f}">{escape(text)}</text>\n'
        )


def _rows(plan: ImagePlan) -> Iterator[str]:
    for number, layer in enumerate(plan.layers, 1):
        paths = "".join(
            f"<li>{escape(str(path))} ({bytes_text(plan.closure[path].nar_size)})</li>" for path in layer.plan.paths
        )
        yield (
            f'<tr><td class="number"><span class="swatch" style="background:{_colour(number)}"></span>{number}</td>'
            f'<td class="number">{bytes_text(layer.plan.nar_size)}</td><td>{_state(layer)}</td>'
            f"<td>{escape(layer.plan.reason)}<details><summary>{_count(len(layer.plan.paths))}</summary>"
            f"<ul>{paths}</ul></details></td></tr>\n"
        )


def _state(layer: PlannedLayer) -> str:
    return "stored" if layer.built else "to write"


def _count(paths: int) -> str:
    return "1 store path" if paths == 1 else f"{paths} store paths"


def _colour(number: int) -> str:
    """Return a light colour for a layer, far from that of its neighbours; black text is readable on all of them."""
    # the golden angle never comes back to the same hue
    return f"hsl({number * 137.508 % 360:.0f} 62% {68 + number % 3 * 6}%)"

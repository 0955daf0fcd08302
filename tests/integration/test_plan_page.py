"""The picture of a plan in a real browser."""

from __future__ import annotations

import colorsys
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_core import Nix
from nixery_core.cli.plan_page import plan_page
from nixery_core.image import ImagePlan, PlannedLayer
from nixery_core.layering import Popularity, UnitsLayerer
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath

RECTANGLE = re.compile(r'<rect class="path" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"')
WIDTH, HEIGHT = 1264, 1000

Browser = Callable[..., str]


@pytest.fixture
def chromium(require: Callable[..., None], tmp_path: Path) -> Browser:
    """A function that calls Chromium without a window and returns what it prints."""
    require("chromium")

    def call(*words: str) -> str:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        return subprocess.run(
            ["chromium", *flags, profile, *words], check=True, capture_output=True, text=True, timeout=120
        ).stdout

    return call


def store_path(number: int) -> StorePath:
    letters = "0123456789abcdfghijklmnpqrsvwxyz"
    return StorePath(letters[number // 32] * 16 + letters[number % 32] * 16, f"package{number}-1.0")


@pytest.fixture
def plan() -> ImagePlan:
    """A plan of 120 store paths in 20 layers, some of them of many paths."""
    paths = [store_path(number) for number in range(120)]
    infos = [
        PathInfo(path, 30_000_000 // (number + 1), paths[number // 2 : number // 2 + 1] if number else [])
        for number, path in enumerate(paths)
    ]
    closure = Closure(infos, paths)
    counts = Popularity({path.package_name: 1000 // (number + 1) for number, path in enumerate(paths)})
    layers = tuple(
        PlannedLayer(plan=layer, layer_key="k", built=None) for layer in UnitsLayerer().plan(closure, counts, 20)
    )
    return ImagePlan(spec=ImageSpec.parse("tools"), revision="r1", packages=(), closure=closure, layers=layers)


def pixels(png: bytes) -> list[bytes]:
    """Return the rows of an image of Chromium: 8 bits a colour, not interlaced (PNG specification, 9.2)."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, interlaced) == (8, 0)
    size = {2: 3, 6: 4}[kind]
    data, position = b"", 8
    while position < len(png):
        (length,), name = struct.unpack(">I", png[position : position + 4]), png[position + 4 : position + 8]
        data += png[position + 8 : position + 8 + length] if name == b"IDAT" else b""
        position += 12 + length
    raw, rows, before = zlib.decompress(data), [], bytearray(width * size)
    for y in range(height):
        start = y * (width * size + 1)
        row = bytearray(raw[start + 1 : start + 1 + width * size])
        for x in range(len(row)):
            left, up = row[x - size] if x >= size else 0, before[x]
            corner = before[x - size] if x >= size else 0
            match raw[start]:
                case 1:
                    row[x] = row[x] + left & 255
                case 2:
                    row[x] = row[x] + up & 255
                case 3:
                    row[x] = row[x] + (left + up) // 2 & 255
                case 4:
                    near = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
                    row[x] = row[x] + near & 255
        rows.append(bytes(row) if size == 3 else bytes(v for i, v in enumerate(row) if i % 4 != 3))
        before = row
    return rows


def rgb(fill: str) -> tuple[int, int, int]:
    hue, saturation, lightness = map(int, re.findall(r"\d+", fill))
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, lightness / 100, saturation / 100))  # type: ignore[return-value]


class TestInABrowser:
    def test_the_dom_has_a_rectangle_for_each_path(self, tmp_path: Path, chromium: Browser, plan: ImagePlan) -> None:
        """The browser reads as many rectangles as there are store paths, in as many groups as there are layers."""
        page = tmp_path / "plan.html"
        page.write_text(plan_page(plan))
        dom = chromium("--dump-dom", page.as_uri())
        assert len(RECTANGLE.findall(dom)) == len(plan.closure) == 120
        assert dom.count('<g class="layer"') == len(plan.layers) == 20
        assert dom.count("</title></rect>") == 120

    def test_the_screenshot_shows_the_rectangles(self, tmp_path: Path, chromium: Browser, plan: ImagePlan) -> None:
        """Each layer has as much of the picture, in its own colour, as its rectangles are large."""
        page, shot = tmp_path / "plan.html", tmp_path / "plan.png"
        page.write_text(plan_page(plan))
        chromium(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", page.as_uri())
        rows = pixels(shot.read_bytes())
        found: dict[tuple[int, int, int], int] = {}
        for row in rows:
            for x in range(0, len(row), 3):
                colour = row[x], row[x + 1], row[x + 2]
                found[colour] = found.get(colour, 0) + 1
        seen = 0
        for group in plan_page(plan).split('<g class="layer" ')[1:]:
            fill = rgb(group.split('"')[1])
            area = sum(float(w) * float(h) for _, _, w, h in RECTANGLE.findall(group))
            shown = sum(
                count
                for colour, count in found.items()
                if all(abs(a - b) <= 1 for a, b in zip(colour, fill, strict=True))
            )
            # the picture is drawn at its own size; lines and names take a part of it
            assert 0.4 * area < shown < 1.3 * area, (fill, area, shown)
            seen += 1
        assert seen == len(plan.layers)


class TestCommand:
    def test_plan_writes_the_page(self, tmp_path: Path, chromium: Browser, nix: Nix) -> None:
        """`nixery-core plan --html` draws the closure that Nix has built."""
        settings = [word for option in nix.options.items() for word in ("--nix-option", *option)]
        words = ["plan", "hello", "--source", "demo", "--store", "images", "--nix-store", str(nix.store), *settings]
        command = [sys.executable, "-m", "nixery_core", *words, "--html", "plan.html", "--json", "--progress", "none"]
        shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300).stdout
        dom = chromium("--dump-dom", (tmp_path / "plan.html").as_uri())
        assert len(RECTANGLE.findall(dom)) == shown.count("/nix/store/")

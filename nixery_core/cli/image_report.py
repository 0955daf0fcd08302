"""What the command says of an image that it built."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping
from typing import Any

from nixery_core.cli.text import bytes_text
from nixery_core.image import Image


def report_image(image: Image, *, json: bool) -> None:
    """Print the image for a person, or as one JSON document."""
    if json:
        json_module.dump(_image_json(image), sys.stdout, indent=2, ensure_ascii=False)
        print()
        return
    state = "was stored already" if image.cached else "is stored"
    print(f"{image.spec.name}:{image.spec.tag} {state}: {len(image.layers)} layers, {bytes_text(image.size)}")
    if image.revision:
        print(f"revision {image.revision}")
    print(image.descriptor.digest)


def _image_json(image: Image) -> Mapping[str, Any]:
    return {
        "name": image.spec.name,
        "tag": image.spec.tag,
        "digest": str(image.descriptor.digest),
        "revision": image.revision,
        "cached": image.cached,
        "size": image.size,
        "layers": [layer.to_json() for layer in image.layers],
    }

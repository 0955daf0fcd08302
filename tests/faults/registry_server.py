"""A registry process for the fault tests: packages in memory, builds that take a while.

Run it: python registry_server.py STORE PORT IMAGES OPTIONS, where OPTIONS is the JSON of what the
storage takes.  It prints a line for each build that begins.
"""

from __future__ import annotations

import json
import random
import sys
import time

import uvicorn

from nixery_core import ImageBuilder, open_backend
from nixery_core.events import PackagesResolved
from nixery_core.model.storepath import StorePath
from nixery_core.server import registry_app
from nixery_core.testing.memory_images import MemorySource
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

LETTERS = "0123456789abcdfghijklmnpqrsvwxyz"


def package(number: int) -> MemoryPackage:
    """Return a package of some hundred kilobytes that compress badly, and differ."""
    path = StorePath(LETTERS[number // 32] + LETTERS[number % 32] * 31, f"p{number}-1")
    return MemoryPackage(path=path, tree={"bin": {f"p{number}": random.Random(number).randbytes(200_000)}})


class Slow(MemoryRealiser):
    """Takes a while for each build, and a different one."""

    def evaluate(self, *arguments, **named):  # type: ignore[no-untyped-def]
        """Wait, then look up."""
        time.sleep(random.uniform(0.05, 0.4))
        return super().evaluate(*arguments, **named)

    def realise(self, *arguments, **named):  # type: ignore[no-untyped-def]
        """Wait once more, in the middle of the build, then give the closure."""
        time.sleep(random.uniform(0.1, 0.6))
        return super().realise(*arguments, **named)


def main() -> None:
    """Serve until killed."""
    store, port, images, options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    packages = {f"p{number}": package(number) for number in range(images)}
    builder = ImageBuilder(MemorySource(), open_backend(store, **options), realiser=Slow(packages))

    def on_build(build, event):  # type: ignore[no-untyped-def]
        if isinstance(event, PackagesResolved):
            print("built", build.spec.name, flush=True)

    app = registry_app(builder, lease_ttl=1.0, patience=5.0, retry_after=1, on_build=on_build)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()

"""For your tests: the promises of a storage backend, package sets in memory, hypothesis strategies.

``nixery_core.testing.BackendTests`` needs pytest and hypothesis, so it is imported when it is asked for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nixery_core.testing.backend import BackendTests

__all__ = ["BackendTests"]


def __getattr__(name: str) -> Any:
    if name != "BackendTests":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    if "nixery_core.testing._suite" not in sys.modules:
        # what its assertions compare is shown, as in any test
        pytest.register_assert_rewrite("nixery_core.testing._suite")
    from nixery_core.testing.backend import BackendTests

    return BackendTests

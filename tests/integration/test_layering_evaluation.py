"""The default strategy against recorded figures, on real closures and updates.

The evaluator and its data are in tests/layering; `tests/benchmarks/layering.py` makes the whole table.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nixery_core.layering import Popularity, UnitsLayerer
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath

TESTS = Path(__file__).resolve().parents[1]
DATA = TESTS / "layering"

# What the rule "join a path of at most 4 MB to its most used referrer" pulls in the same quick replay (seed 1),
# in the order of COLUMNS: the strategy "units" of tests/layering/README.md.
COLUMNS = ("seq200", "node20", "update1", "fleet", "chain20")
REFERENCE = {
    ("debian", 94): (1.030, 1.045, 1.201, 1.088, 2.17),
    ("debian", 20): (1.200, 1.415, 2.511, 2.170, 2.30),
    ("nixos", 94): (1.097, 1.050, 1.179, 1.236, 2.42),
    ("nixos", 20): (2.041, 1.527, 1.896, 2.901, 3.50),
}
MARGIN = 1.02
"""Quick samples are small: full ones stay within 1 %."""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The module tests/benchmarks/layering.py, which is no part of a package."""
    file = TESTS / "benchmarks" / "layering.py"
    spec = importlib.util.spec_from_file_location("layering_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("kind", "budget"), REFERENCE)
def test_no_more_bytes_than_recorded(benchmark: ModuleType, kind: str, budget: int) -> None:
    """In no scenario more bytes are pulled than by the recorded rule, beyond the margin, and fewer in the mean."""
    (row,) = benchmark.rows(DATA, kind, budget, 1, ["units"], quick=True)
    reference = dict(zip(COLUMNS, REFERENCE[kind, budget], strict=True))
    found = {column: round(row[column], 3) for column in COLUMNS}
    assert all(found[column] <= MARGIN * reference[column] for column in COLUMNS), (found, reference)
    assert sum(found.values()) < sum(reference.values())


@pytest.mark.parametrize(("kind", "share"), [("debian", 0.99), ("nixos", 0.97)])
def test_an_unrelated_package_changes_few_layers_beyond_the_budget(
    benchmark: ModuleType, kind: str, share: float
) -> None:
    """One more package in an image that is beyond its budget leaves nearly all bytes in the layers they were in."""
    evaluator = benchmark.evaluator_in(DATA)
    universe = evaluator.Universe(kind)
    world, popularity, chance = evaluator.World(universe), Popularity(universe.popularity), random.Random(7)
    other = StorePath("0" * 32, "zz-unrelated-1.0")
    images = [roots for roots in universe.images if len(universe.closure(roots)) > 150]
    kept = total = 0
    for roots in chance.sample(images, 20):
        closure = Closure.from_reference_graph(world.graph(roots, chance))
        more = Closure([*closure, PathInfo(other, 300_000, [])], [*closure.roots, other])
        before = UnitsLayerer().plan(closure, popularity, 94)
        after = {plan.paths for plan in UnitsLayerer().plan(more, popularity, 94)}
        kept += sum(plan.nar_size for plan in before if plan.paths in after)
        total += closure.nar_size
    assert kept / total >= share, kept / total

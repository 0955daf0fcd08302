"""How many bytes clients pull with each layering strategy, and how long a plan takes.

    python tests/benchmarks/layering.py [FOLDER] [--seeds 11 12 13] [--budgets 94 20] [--quick] [--json]
    python tests/benchmarks/layering.py [FOLDER] --time [--json]

FOLDER holds the evaluator ``evaluate.py`` and its data; by default ``../shared/layering`` beside the checkout,
else the copy in ``tests/layering``.  The first form replays pulls and updates and prints the table of
docs/explanation/layering.md: means over the seeds, relative to one layer a store path without limit.  The
second measures the time of a plan for closures of 2,600 and 100 paths.

The evaluator can also call the strategies itself, with this folder on PYTHONPATH:

    python evaluate.py --plan layering:plan,layering:dominator
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from nixery_core.layering import (
    DominatorLayerer,
    Layerer,
    PerPathLayerer,
    Popularity,
    SingleLayerer,
    UnitsLayerer,
)
from nixery_core.model.closure import Closure

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = (CHECKOUT.parent / "shared" / "layering", CHECKOUT / "tests" / "layering")
COLUMNS = ("seq200", "node20", "update1", "fleet", "chain20")
TITLES = ("200 images in sequence", "20 images on a node", "one update", "a fleet with updates", "20 images, by chain")
DATA = {"debian": "Debian packages", "nixos": "a NixOS system"}

Graph = Mapping[str, Any]
Plan = Callable[[Graph, Mapping[str, int], int], list[list[str]]]


def _layers(layerer: Layerer, graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    plans = layerer.plan(Closure.from_reference_graph(graph), Popularity(popularity), budget)
    return [[str(path) for path in plan.paths] for plan in plans]


def units(graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    """Plan by the default strategy."""
    return _layers(UnitsLayerer(), graph, popularity, budget)


def dominator(graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    """Plan by Nixery's strategy."""
    return _layers(DominatorLayerer(), graph, popularity, budget)


def per_path(graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    """Give each path a layer of its own."""
    return _layers(PerPathLayerer(), graph, popularity, budget)


def single(graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    """Put all into one layer."""
    return _layers(SingleLayerer(), graph, popularity, budget)


def units_without_popularity(graph: Graph, popularity: Mapping[str, int], budget: int) -> list[list[str]]:
    """Plan by the default strategy where nothing is known of the packages."""
    return _layers(UnitsLayerer(), graph, {}, budget)


plan = units

STRATEGIES: dict[str, tuple[str, Plan]] = {
    "single": ("`SingleLayerer`", single),
    "dominator": ("`DominatorLayerer`", dominator),
    "per_path": ("`PerPathLayerer`", per_path),
    "units_without_popularity": ("`UnitsLayerer` without popularity data", units_without_popularity),
    "units": ("`UnitsLayerer`", units),
}


def evaluator_in(folder: Path) -> ModuleType:
    """Return the evaluator; exits where there is none."""
    file = folder / "evaluate.py"
    if not file.is_file():
        sys.exit(
            f"there is no evaluator in {folder}: name the folder that holds evaluate.py, debian.json.gz, nixos.json.gz"
        )
    spec = importlib.util.spec_from_file_location("layering_evaluator", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(folder: Path, kind: str, budget: int, seed: int, names: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """Replay one sample of pulls and updates for each strategy."""
    evaluator = evaluator_in(folder)
    universe = evaluator.Universe(kind)
    run = evaluator.scenarios(universe, seed, quick)
    bound = run(evaluator.Planner(None, universe, 0))
    result = []
    for name in names:
        planner = evaluator.Planner(STRATEGIES[name][1], universe, budget)
        pulled = run(planner)
        # a store by chain pulls at least what a store by layer pulls
        row: dict[str, Any] = {c: pulled[c] / bound["node20" if c == "chain20" else c] for c in COLUMNS}
        row |= {"layers": pulled["layers"], "fetched": pulled["requests"]}
        row |= {"plan_ms": 1000 * planner.seconds / len(planner.memo)}
        result.append({"data": kind, "budget": budget, "seed": seed, "plan": name} | row)
    return result


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the means over the seeds as a table of Markdown."""
    lines = ["| data, budget, strategy | " + " | ".join(TITLES) + " | layers |", "|---" * (len(TITLES) + 2) + "|"]
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["data"], row["budget"], row["plan"]), []).append(row)
    for (kind, budget, name), members in groups.items():
        means = [statistics.fmean(row[c] for row in members) for c in COLUMNS]
        layers = statistics.fmean(row["layers"] for row in members)
        cells = [f"{DATA[kind]}, {budget}, {STRATEGIES[name][0]}", *(f"{mean:.3f}" for mean in means), f"{layers:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def times(folder: Path, repeat: int = 9) -> list[dict[str, Any]]:
    """Measure plans of closures of 2,600 paths (or the whole data set) and 100 paths; the closure is read before."""
    evaluator = evaluator_in(folder)
    result = []
    for kind in DATA:
        universe = evaluator.Universe(kind)
        world, popularity = evaluator.World(universe), Popularity(universe.popularity)
        large: list[int] = []
        held: set[int] = set()
        for package in random.Random(1).sample(range(len(universe.packages)), len(universe.packages)):
            if len(held) < 2600:
                large.append(package)
                held |= universe.closure([package])
        small = min(universe.images, key=lambda roots: (abs(len(universe.closure(roots)) - 100), roots))
        for roots in (large, small):
            closure = Closure.from_reference_graph(world.graph(roots, random.Random(1)))
            for name in ("units", "dominator"):
                layerer = UnitsLayerer() if name == "units" else DominatorLayerer()
                seconds = []
                for _ in range(repeat):
                    start = time.perf_counter()
                    layerer.plan(closure, popularity, 94)
                    seconds.append(time.perf_counter() - start)
                row = {"best_ms": 1000 * min(seconds), "median_ms": 1000 * statistics.median(seconds)}
                result.append({"data": kind, "plan": name, "paths": len(closure)} | row)
    return result


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where evaluate.py and its data are")
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=["debian", "nixos"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[94, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--plans", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--quick", action="store_true", help="small samples, in seconds")
    parser.add_argument("--time", action="store_true", help="measure how long plans take")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that evaluate")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    folder = arguments.folder or next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    evaluator_in(folder)
    if arguments.time:
        found = times(folder)
        if not arguments.json:
            for row in found:
                print(
                    "{data:7} {plan:10} {paths:5} paths: best {best_ms:6.1f} ms, median {median_ms:6.1f} ms".format(
                        **row
                    )
                )
            return
    else:
        with ProcessPoolExecutor(arguments.workers) as pool:
            jobs = [
                pool.submit(rows, folder, kind, budget, seed, arguments.plans, arguments.quick)
                for kind in arguments.data
                for budget in arguments.budgets
                for seed in arguments.seeds
            ]
            found = [row for job in jobs for row in job.result()]
        if not arguments.json:
            print(table(found))
            return
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

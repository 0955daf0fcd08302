"""The promises of every layering strategy that a small closure can show."""

from __future__ import annotations

import hashlib

import pytest

from nixery_core.errors import LayerBudgetError, LayerPlanError
from nixery_core.layering import (
    Layerer,
    LayerPlan,
    PerPathLayerer,
    Popularity,
    SingleLayerer,
    UnitsLayerer,
    check_budget,
    check_plans,
)
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath

MIB = 1 << 20
NONE = Popularity()
STRATEGIES: list[Layerer] = [UnitsLayerer(), PerPathLayerer(), SingleLayerer()]
every_strategy = pytest.mark.parametrize("layerer", STRATEGIES, ids=lambda layerer: layerer.id)


def store_path(name: str) -> StorePath:
    """Return a store path whose hash follows from *name*."""
    digest = hashlib.sha256(name.encode()).digest()
    return StorePath("".join("0123456789abcdfghijklmnpqrsvwxyz"[byte & 31] for byte in digest), name)


def closure(references: dict[str, list[str]], sizes: dict[str, int], roots: list[str]) -> Closure:
    """Return the closure of *references*; a path without a size has 1,000 bytes."""
    return Closure(
        [PathInfo(store_path(n), sizes.get(n, 1000), [store_path(d) for d in ds]) for n, ds in references.items()],
        [store_path(root) for root in roots],
    )


def names(plan: LayerPlan) -> set[str]:
    """Return the names of the paths of *plan*."""
    return {path.name for path in plan.paths}


def bash() -> Closure:
    """Return a closure of two large and two small paths."""
    return closure(
        {
            "bash-5.2": ["bash-5.2", "readline-8.2", "glibc-2.39"],
            "readline-8.2": ["ncurses-6.4", "glibc-2.39"],
            "ncurses-6.4": ["glibc-2.39"],
            "glibc-2.39": ["glibc-2.39"],
        },
        {"glibc-2.39": 30 * MIB, "bash-5.2": 7 * MIB, "readline-8.2": MIB, "ncurses-6.4": MIB},
        ["bash-5.2"],
    )


class TestEveryStrategy:
    @every_strategy
    @pytest.mark.parametrize("budget", [1, 2, 3, 94, 125])
    def test_plans_are_a_partition_within_the_budget(self, layerer: Layerer, budget: int) -> None:
        """Every path is in exactly one layer, whatever the budget."""
        plans = layerer.plan(bash(), Popularity({"glibc": 9, "bash": 8}), budget)
        assert check_plans(plans, bash(), budget) == tuple(plans)

    @every_strategy
    @pytest.mark.parametrize("budget", [0, -1, 126, True, 1.5])
    def test_budget_outside_1_to_125_is_refused(self, layerer: Layerer, budget: int) -> None:
        """A budget that no engine can take is an error before any work."""
        with pytest.raises(LayerBudgetError, match="1 to 125"):
            layerer.plan(bash(), NONE, budget)

    @every_strategy
    def test_empty_closure_has_no_layers(self, layerer: Layerer) -> None:
        """An image without packages has no layer of store paths."""
        assert tuple(layerer.plan(closure({}, {}, []), NONE, 94)) == ()

    @every_strategy
    def test_every_plan_says_why_and_how_large(self, layerer: Layerer) -> None:
        """The reason is one line for a person and the size is the sum of the NARs."""
        plans = layerer.plan(bash(), NONE, 2)
        assert all(plan.reason and "\n" not in plan.reason for plan in plans)
        assert sum(plan.nar_size for plan in plans) == bash().nar_size

    def test_ids_differ(self) -> None:
        """Strategies never share cached images."""
        assert len({layerer.id for layerer in STRATEGIES}) == len(STRATEGIES)


class TestPerPath:
    def test_smallest_share_the_last_layer_beyond_the_budget(self) -> None:
        """With a budget of three the two large paths stay alone."""
        plans = PerPathLayerer().plan(bash(), NONE, 3)
        assert sorted(map(sorted, map(names, plans))) == [["bash-5.2"], ["glibc-2.39"], ["ncurses-6.4", "readline-8.2"]]


class TestCheckPlans:
    def test_two_layers_may_not_hold_one_path(self) -> None:
        """A path in two layers is an error that names it."""
        plan = LayerPlan([info.path for info in bash()], 1)
        with pytest.raises(LayerPlanError, match="two layers"):
            check_plans([plan, plan], bash(), 94)

    def test_no_path_may_be_left_out(self) -> None:
        """A forgotten path is an error that names it."""
        with pytest.raises(LayerPlanError, match="left out 3 store paths"):
            check_plans([LayerPlan([store_path("bash-5.2")], 1)], bash(), 94)

    def test_no_path_may_come_from_elsewhere(self) -> None:
        """A path of another closure is an error that names it."""
        with pytest.raises(LayerPlanError, match=r"hello-1\.0.*not in the closure"):
            check_plans([LayerPlan([store_path("hello-1.0")], 1)], bash(), 94)

    def test_no_layer_may_be_empty(self) -> None:
        """A layer without paths is an error."""
        with pytest.raises(LayerPlanError, match="no store path"):
            check_plans([LayerPlan([], 0)], bash(), 94)

    def test_more_layers_than_the_budget_are_refused(self) -> None:
        """A layerer that ignores the budget is found out."""
        with pytest.raises(LayerPlanError, match="4 layers of a budget of 3"):
            check_plans(PerPathLayerer().plan(bash(), NONE, 4), bash(), 3)

    def test_a_whole_number_within_the_limits_is_returned(self) -> None:
        """The checked budget comes back."""
        assert check_budget(125) == 125

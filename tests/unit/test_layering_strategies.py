"""The promises of every layering strategy that a small closure can show."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import pytest

from nixery_core.errors import InvalidConfig, LayerBudgetError, LayerPlanError
from nixery_core.layering import (
    DominatorLayerer,
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
STRATEGIES: list[Layerer] = [UnitsLayerer(), DominatorLayerer(), PerPathLayerer(), SingleLayerer()]
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


def grouped(plans: Sequence[LayerPlan]) -> list[list[str]]:
    """Return the names in each layer, bottom layer first."""
    return [sorted(names(plan)) for plan in plans]


class TestUnits:
    def test_what_comes_together_everywhere_shares_a_layer(self) -> None:
        """The small companions of a path join it; what others use as well does not."""
        popularity = Popularity({"glibc": 9000, "bash": 900, "readline": 950, "ncurses": 4000})
        assert grouped(UnitsLayerer().plan(bash(), popularity, 94)) == [
            ["glibc-2.39"],
            ["bash-5.2", "readline-8.2"],
            ["ncurses-6.4"],
        ]

    def test_companions_that_seldom_change_stay_apart_from_a_host_that_often_does(self) -> None:
        """A host that depends on a hundred packages is renamed by most updates, and its icons are not."""
        needs: dict[str, list[str]] = {f"lib{n}": [] for n in range(100)}
        desktop = closure(
            {"desktop": ["icons", "sounds", *needs], "icons": [], "sounds": [], **needs},
            {"icons": MIB, "sounds": MIB, **dict.fromkeys(needs, 9 * MIB)},
            ["desktop"],
        )
        popularity = Popularity({"desktop": 50, "icons": 50, "sounds": 50, **dict.fromkeys(needs, 900)})
        plans = grouped(UnitsLayerer().plan(desktop, popularity, 125))
        assert ["icons", "sounds"] in plans
        assert ["desktop"] in plans

    def test_nothing_is_joined_without_popularity_data(self) -> None:
        """Inside the budget and without data every path is a layer of its own, the largest first."""
        assert grouped(UnitsLayerer().plan(bash(), NONE, 94)) == [
            ["glibc-2.39"],
            ["bash-5.2"],
            ["ncurses-6.4"],
            ["readline-8.2"],
        ]

    def test_a_smaller_budget_makes_a_layer_worth_more(self) -> None:
        """With few layers larger paths are joined, in every image alike."""
        popularity = Popularity({"glibc": 1000, "bash": 900, "readline": 950, "ncurses": 1000})
        assert [len(UnitsLayerer().plan(bash(), popularity, budget)) for budget in (125, 20)] == [2, 1]

    def test_small_paths_beyond_the_budget_join_at_their_own_price(self) -> None:
        """A program and its library are worth two layers until the budget is short, and then come together."""
        tools = {f"tool{n:02}": [f"lib{n:02}"] for n in range(20)}
        large: dict[str, list[str]] = {f"large{n:02}": [] for n in range(93)}
        small = {**tools, **{libs[0]: [] for libs in tools.values()}}
        sizes = {**dict.fromkeys(small, 8 * MIB), **dict.fromkeys(large, 99 * MIB)}
        image = closure({**small, **large}, sizes, [*small, *large])
        # without its tool each library wastes a megabyte: more than the price, and less than that of the rest
        popularity = Popularity({**dict.fromkeys(tools, 875), **{libs[0]: 1000 for libs in tools.values()}})

        def together(layerer: UnitsLayerer) -> int:
            layers = [names(plan) for plan in layerer.plan(image, popularity, 125)]
            return sum(any({tool, *libs} <= layer for layer in layers) for tool, libs in tools.items())

        assert together(UnitsLayerer(update_rate=0)) == 20
        assert together(UnitsLayerer(update_rate=0, rest_price=0)) < 20
        inside = closure(small, sizes, list(small))
        assert len(UnitsLayerer(update_rate=0).plan(inside, popularity, 125)) == 40

    def test_the_order_is_bytes_times_use_with_the_rest_on_top(self) -> None:
        """Other images most likely share the bottom; what is gathered for this image breaks no common chain."""
        paths: dict[str, list[str]] = {f"p{n:03}": [] for n in range(40)}
        image = closure(paths, {name: (n + 1) * MIB for n, name in enumerate(paths)}, list(paths))
        plans = UnitsLayerer().plan(image, Popularity({"p035": 100, "p038": 2}), 10)
        assert grouped(plans)[:2] == [["p035"], ["p038"]]
        sizes = [plan.nar_size for plan in plans if len(plan.paths) == 1]
        assert sizes[2:] == sorted(sizes[2:], reverse=True)
        assert all(len(plan.paths) > 1 for plan in plans[len(sizes) :])

    def test_reasons_name_the_host(self) -> None:
        """A person reads which package brings the others along."""
        popularity = Popularity({"glibc": 9000, "bash": 900, "readline": 950, "ncurses": 4000})
        reasons = [plan.reason for plan in UnitsLayerer().plan(bash(), popularity, 94)]
        assert reasons == ["glibc alone", "bash and readline, which nearly always come with it", "ncurses alone"]

    def test_a_version_in_the_data_does_not_hide_the_package(self) -> None:
        """Data that also holds a name with its version counts the package as widely as its plain name."""
        plain = Popularity({"glibc": 9000, "bash": 900, "readline": 950, "ncurses": 4000})
        soiled = Popularity({**plain.counts, "ncurses-6.4": 3, "glibc-2.39": 1})
        assert grouped(UnitsLayerer().plan(bash(), soiled, 94)) == grouped(UnitsLayerer().plan(bash(), plain, 94))

    @pytest.mark.parametrize(
        "wrong", [{"price": -1}, {"rest_price": -1}, {"share": 1.5}, {"least": 0}, {"update_rate": 2}]
    )
    def test_parameters_out_of_range_are_refused(self, wrong: dict[str, float]) -> None:
        """A strategy with senseless parameters is never made."""
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UnitsLayerer(**wrong)

    def test_parameters_are_in_the_id(self) -> None:
        """Images planned with other parameters never come from the cache."""
        layerers = [UnitsLayerer(), UnitsLayerer(price=1), UnitsLayerer(share=0.5), UnitsLayerer(least=9)]
        layerers += [UnitsLayerer(update_rate=0), UnitsLayerer(rest_price=0)]
        assert len({layerer.id for layerer in layerers}) == 6


class TestDominator:
    def test_a_path_lies_with_the_one_that_all_ways_lead_through(self) -> None:
        """What the image has only through bash is with bash, and a popular path is not."""
        assert grouped(DominatorLayerer().plan(bash(), NONE, 94)) == [
            ["bash-5.2", "glibc-2.39", "ncurses-6.4", "readline-8.2"]
        ]
        assert grouped(DominatorLayerer().plan(bash(), Popularity({"glibc": 101}), 94)) == [
            ["glibc-2.39"],
            ["bash-5.2", "ncurses-6.4", "readline-8.2"],
        ]

    def test_a_large_path_has_a_layer_of_its_own(self) -> None:
        """The size is that of the path: bash with its closure is above the limit, and not by itself."""
        plans = DominatorLayerer(large=29 * MIB).plan(bash(), NONE, 94)
        assert grouped(plans) == [["glibc-2.39"], ["bash-5.2", "ncurses-6.4", "readline-8.2"]]

    def test_what_two_roots_need_belongs_to_neither(self) -> None:
        """A diamond is split at its tip."""
        both = closure({"a": ["c"], "b": ["c"], "c": ["d"], "d": []}, {}, ["a", "b"])
        assert sorted(grouped(DominatorLayerer().plan(both, NONE, 94))) == [["a"], ["b"], ["c", "d"]]

    def test_the_lowest_ratings_are_merged_on_top(self) -> None:
        """Beyond the budget what is small and little used shares the last layer, whatever the hashes."""
        paths: dict[str, list[str]] = {f"p{n}": [] for n in range(9)}
        image = closure(paths, {}, list(paths))
        plans = DominatorLayerer().plan(image, Popularity({"p3": 7, "p8": 5}), 3)
        assert grouped(plans)[:2] == [["p3"], ["p8"]]
        assert len(plans[-1].paths) == 7
        assert plans[-1].reason.startswith("lowest in bytes times popularity: p0, p1, p2 and 4 more")

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without networkx the error says which package to install."""
        monkeypatch.setitem(sys.modules, "networkx", None)
        with pytest.raises(InvalidConfig, match=r"networkx.*nixery-core\[dominator\]"):
            DominatorLayerer().plan(bash(), NONE, 94)


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
        assert check_budget(94, beside=31) == 94

    def test_other_layers_count(self) -> None:
        """The layers of a base and the budget together are no more than engines take."""
        with pytest.raises(LayerBudgetError, match=r"94 and 32 other layers are more than 125.*at most 93"):
            check_budget(94, beside=32)
        with pytest.raises(LayerBudgetError, match="base of fewer layers"):
            check_budget(1, beside=125)

    @pytest.mark.parametrize("beside", [-1, 1.5, True])
    def test_other_layers_are_a_whole_number(self, beside: int) -> None:
        """A number of layers that cannot be is an error."""
        with pytest.raises(LayerBudgetError, match="whole number from 0"):
            check_budget(94, beside=beside)

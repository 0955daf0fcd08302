"""What holds for the plans of every strategy, whatever the closure."""

import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_core.layering import (
    DominatorLayerer,
    Layerer,
    PerPathLayerer,
    Popularity,
    SingleLayerer,
    UnitsLayerer,
    check_plans,
)
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath
from nixery_core.testing.strategies import closures

pytestmark = pytest.mark.property

STRATEGIES: list[Layerer] = [UnitsLayerer(), DominatorLayerer(), PerPathLayerer(), SingleLayerer()]
layerers = st.sampled_from(STRATEGIES)
budgets = st.sampled_from([1, 2, 3, 5, 20, 94, 125])


@st.composite
def popularities(draw: st.DrawFn, closure: Closure) -> Popularity:
    """Give counts for some of the packages of a closure, many of them equal."""
    names = sorted({info.path.package_name for info in closure})
    counts = st.sampled_from([0, 1, 3, 100, 101, 101, 5000])
    return Popularity(draw(st.dictionaries(st.sampled_from(names), counts)) if names else {})


@given(st.data(), closures(), layerers, budgets)
@settings(deadline=None)
def test_a_plan_is_an_exact_partition_within_the_budget(
    data: st.DataObject, closure: Closure, layerer: Layerer, budget: int
) -> None:
    """Every path is in one layer, no layer is empty, and each says why in one line."""
    plans = layerer.plan(closure, data.draw(popularities(closure)), budget)
    assert check_plans(plans, closure, budget) == plans
    assert all(plan.nar_size == sum(closure[path].nar_size for path in plan.paths) for plan in plans)
    assert all(plan.reason and plan.reason.isprintable() for plan in plans)


@given(st.data(), closures(), layerers, budgets, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_changes_nothing(
    data: st.DataObject, closure: Closure, layerer: Layerer, budget: int, chance: random.Random
) -> None:
    """Paths, references, roots and counts in any order give the same plans in the same order, with the same reasons."""
    popularity = data.draw(popularities(closure))
    infos, roots, counts = list(closure), list(closure.roots), list(popularity.counts.items())
    for items in (infos, roots, counts):
        chance.shuffle(items)
    shuffled = [attrs.evolve(info, references=chance.sample(info.references, len(info.references))) for info in infos]
    again = layerer.plan(Closure(shuffled, roots), Popularity(dict(counts)), budget)
    before = layerer.plan(closure, popularity, budget)
    assert [(plan.paths, plan.reason) for plan in again] == [(plan.paths, plan.reason) for plan in before]


@given(st.data(), closures(), layerers)
@settings(deadline=None)
def test_an_unrelated_package_changes_no_layer_within_the_budget(
    data: st.DataObject, closure: Closure, layerer: Layerer
) -> None:
    """One more package that shares nothing with the others leaves all their layers as they were."""
    popularity = data.draw(popularities(closure))
    other = StorePath("0" * 32, "zz-unrelated-1.0")
    more = Closure([*closure, PathInfo(other, data.draw(st.integers(0, 1 << 32)), [])], [*closure.roots, other])
    before = {plan.paths for plan in layerer.plan(closure, popularity, 94)}
    after = {plan.paths for plan in layerer.plan(more, popularity, 94)}
    if isinstance(layerer, SingleLayerer):
        assert not before & after or not before
    else:
        assert after - before == {(other,)}
        assert before < after

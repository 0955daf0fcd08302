"""Counting by bits gives what counting one closure at a time gives, for all closures."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.model.closure import Closure
from nixery_core.model.storepath import StorePath
from nixery_core.popcount import counting
from nixery_core.popcount.counting import PathFacts, count_closures
from nixery_core.testing.strategies import closures

pytestmark = pytest.mark.property

NAMES = st.sampled_from(["glibc-2.36", "glibc-2.35", "glibc-2.36-bin", "bash-5.2", "tool", "tool-dev", "tool-dev-1"])


@st.composite
def facts(draw: st.DrawFn) -> dict[StorePath, PathFacts]:
    """The paths of a closure under few names, some of them outputs of one derivation, some missing."""
    closure: Closure = draw(closures(max_size=12))
    renamed = {info.path: StorePath(info.path.hash, draw(NAMES)) for info in closure}
    derivers = [StorePath(letter * 32, f"{name}.drv") for letter, name in (("1", "glibc-2.36"), ("2", "tool"))]
    found = [
        PathFacts(
            renamed[info.path],
            tuple(renamed[reference] for reference in info.references),
            draw(st.sampled_from([None, *derivers])),
        )
        for info in closure
    ]
    return {fact.path: fact for fact in found if draw(st.integers(0, 9))}


def one_by_one(known: dict[StorePath, PathFacts], roots: list[StorePath]) -> dict[str, int]:
    """Count each root package's closure by itself."""
    packages: dict[StorePath, list[StorePath]] = {}
    for root in set(roots) & known.keys():
        packages.setdefault(known[root].deriver or root, []).append(root)
    counts: dict[str, int] = {}
    aliases: dict[str, set[str]] = {}
    for outputs in packages.values():
        seen, todo = set(outputs), list(outputs)
        while todo:
            for reference in (known.get(path := todo.pop()) or PathFacts(path, ())).references:
                if reference not in seen:
                    seen.add(reference)
                    todo.append(reference)
        names = set()
        for path in seen:
            name = (known.get(path) or PathFacts(path, ())).package
            names.add(name)
            aliases.setdefault(path.package_name, set()).add(name)
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    return counts | {
        alias: max(counts[name] for name in {*names, alias} & counts.keys()) for alias, names in aliases.items()
    }


@given(known=facts(), data=st.data(), block=st.integers(1, 5))
def test_counts_are_exact(known: dict[StorePath, PathFacts], data: st.DataObject, block: int) -> None:
    """However many roots are counted at once, each package has the number of root packages that hold it."""
    roots = data.draw(st.lists(st.sampled_from(sorted(known)), max_size=12)) if known else []
    with patch.object(counting, "BLOCK", block):
        found = count_closures(known, roots)
    assert found.popularity.counts == one_by_one(known, roots)
    # what a layerer asks for is there
    for root in roots:
        assert found.popularity.of(root) >= 1


@given(known=facts(), data=st.data())
def test_the_order_does_not_matter(known: dict[StorePath, PathFacts], data: st.DataObject) -> None:
    """The same facts and roots in any order give equal results, in the same order of names."""
    roots = sorted(known)
    first = count_closures(known, roots)
    shuffled = dict(data.draw(st.permutations(list(known.items()))))
    second = count_closures(shuffled, data.draw(st.permutations(roots)))
    assert first == second
    assert list(first.popularity.counts) == list(second.popularity.counts)

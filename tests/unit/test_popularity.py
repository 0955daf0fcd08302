"""Names without versions, and what popularity data knows of a store path."""

from __future__ import annotations

import pytest

from nixery_core.layering.popularity import Popularity
from nixery_core.layering.units import UnitsLayerer
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath, name_without_version
from nixery_core.popcount.counting import PathFacts, count_closures


def path(name: str, letter: str = "z") -> StorePath:
    return StorePath(letter * 32, name)


class TestNameWithoutVersion:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("hello", "hello"),
            ("glibc-2.40-66", "glibc"),
            ("glibc-2.40-66-bin", "glibc"),
            ("bash-interactive-5.2p37", "bash-interactive"),
            ("python3.12-requests-2.32.3", "python3.12-requests"),
            ("7zip-24.09", "7zip"),
            ("gpm-unstable-2020-06-17", "gpm"),
            ("trurl-0-unstable-2024-08-01", "trurl"),
            ("linux-6.6-rc3", "linux"),
            ("systemd-257.5-libgcrypt", "systemd-libgcrypt"),
            ("qtbase-6.9.0-only-plugins-qml", "qtbase-only-plugins-qml"),
            ("libreoffice-24.8.5.2-wrapped", "libreoffice-wrapped"),
            ("wine-unstable", "wine-unstable"),
            ("-1.0", ""),
        ],
    )
    def test_cases(self, name: str, expected: str) -> None:
        """The version, the usual outputs and the words of versions go; whatever else tells things apart stays."""
        assert name_without_version(name) == expected

    def test_it_survives_an_update(self) -> None:
        """Two versions of one thing have one name: that is what the data is looked up by."""
        for one, other in (("perl-5.40.0-env", "perl-5.42-env"), ("a-2024-01-01", "a-2025-12-31-rc1-man")):
            assert name_without_version(one) == name_without_version(other)


class TestLookingUp:
    @pytest.mark.parametrize(
        ("counts", "name", "found"),
        [
            ({"gtk-3": 7, "gtk": 9}, "gtk-3-3.24.38", "gtk-3"),
            ({"gtk-3": 7, "gtk": 9}, "gtk-3-3.24.38-dev", "gtk-3"),
            ({"gtk-3": 7}, "gtk-4-4.1", "gtk"),
            ({"libidn2-2.3.8": 12, "libidn2": 2248}, "libidn2-2.3.8", "libidn2"),
            ({"libidn2-2.3.8": 12}, "libidn2-2.3.8", "libidn2-2.3.8"),
            ({"perl": 169, "perl-env": 25}, "perl-5.40.0-env", "perl-env"),
            ({"perl": 169, "perl-5.40.0-env": 25}, "perl-5.40.0-env", "perl-5.40.0-env"),
            ({"perl": 169}, "perl-5.40.0-env", "perl-env"),
            ({"perl": 169}, "perl-5.40.0-man", "perl"),
            ({"gpm": 5}, "gpm-unstable-2020-06-17", "gpm"),
            ({"gpm-unstable": 5}, "gpm-unstable-2020-06-17", "gpm-unstable"),
            ({}, "util-linux-2.39-mount", "util-linux-mount"),
        ],
    )
    def test_names(self, counts: dict[str, int], name: str, found: str) -> None:
        """The longest name that the data knows wins, unless it is a version of another or lacks what tells it apart."""
        popularity = Popularity(counts)
        assert popularity.name_of(path(name)) == found
        assert popularity.of(path(name)) == counts.get(found, 0)

    def test_counting_and_looking_up_agree(self) -> None:
        """Whatever is counted is found again by the store path that it was counted for, and by its next version."""
        drv = path("util-linux-2.39.drv")
        facts = [
            PathFacts(path("perl-5.40.0", "a"), (), path("perl-5.40.0.drv")),
            PathFacts(path("perl-5.40.0-env", "b"), (path("perl-5.40.0", "a"),), path("perl-5.40.0-env.drv")),
            PathFacts(path("perl-5.40.0-man", "c"), (), path("perl-5.40.0.drv")),
            PathFacts(path("util-linux-2.39-mount", "d"), (path("perl-5.40.0", "a"),), drv),
            PathFacts(path("util-linux-2.39-bin", "f"), (path("util-linux-2.39-mount", "d"),), drv),
        ]
        counts = count_closures({fact.path: fact for fact in facts}, [fact.path for fact in facts]).popularity
        assert dict(counts.counts) == {"perl": 3, "perl-env": 1, "util-linux": 1, "util-linux-mount": 1}
        for name, count in (("perl-6", 3), ("perl-6-env", 1), ("perl-6-man", 3), ("util-linux-3-mount", 1)):
            assert counts.of(path(name)) == count


def test_an_environment_does_not_take_its_interpreter_along() -> None:
    """An environment that few use has not the popularity of what it is an environment of: they stay apart."""
    perl, library, env = path("perl-5.40.0", "a"), path("library-1", "b"), path("perl-5.40.0-env", "c")
    closure = Closure(
        [
            PathInfo(perl, 60 << 20, []),
            PathInfo(library, 300_000, [perl]),
            PathInfo(env, 20_000, [perl, library]),
        ],
        [env],
    )
    popularity = Popularity({"perl": 169, "library": 25, "perl-env": 25})
    layers = [set(plan.paths) for plan in UnitsLayerer().plan(closure, popularity, 94)]
    assert sorted(layers, key=len) == [{perl}, {library, env}]

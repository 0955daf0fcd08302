"""What the expressions say of a name becomes a package or a problem."""

from __future__ import annotations

from typing import Any

import pytest

from nixery_core.errors import PackageProblem, ProblemKind
from nixery_core.model.package import ResolvedPackage
from nixery_core.nix._answer import read_entry

DRV = "/nix/store/fwsj7r0jnkibb00dxbwhn38illzmaa2z-hello-2.12.drv"
OUT = "/nix/store/pagky6cwls4ms298c25vidynhyzwsysr-hello-2.12"


def ok(**changes: Any) -> dict[str, Any]:
    outputs = [{"name": "out", "path": OUT}]
    return {"status": "ok", "attribute": "hello", "drvPath": DRV, "outputs": outputs, "priority": None} | changes


def failed(reason: str, *kinds: str) -> dict[str, Any]:
    return {"status": "failed", "attribute": "x", "kinds": list(kinds), "reason": reason}


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 5), (10, 10), (-3, -3), ("7", 7), (2.9, 2), ("high", 5), ([], 5), (True, 5)]
)
def test_priority_is_a_number_whatever_the_package_says(value: object, expected: int) -> None:
    """A priority that is no number counts as none."""
    package = read_entry("hello", ok(priority=value), {})
    assert isinstance(package, ResolvedPackage)
    assert package.priority == expected


def test_an_output_without_a_known_path_is_a_problem() -> None:
    """A content-addressed derivation, whose output path is a placeholder, is refused with the reason."""
    problem = read_entry("hello", ok(outputs=[{"name": "out", "path": "/1rz4g4znpzjwh1xymhjpm42vipw92pr7"}]), {})
    assert isinstance(problem, PackageProblem)
    assert problem.kind is ProblemKind.FAILED
    assert "not known before it is built" in problem.reason


@pytest.mark.parametrize(
    ("reason", "kinds", "expected"),
    [
        ("Package ‘unrar-6’ in x.nix:3 has an unfree license (‘unfree’), refusing to evaluate.", [], "unfree"),
        ("Package ‘x’ is marked as broken, refusing to evaluate.", ["unfree", "broken"], "broken"),
        ("Package ‘openssl-1.1.1w’ is marked as insecure, refusing to evaluate.", [], "insecure"),
        ("Package ‘x’ is not available on the requested hostPlatform:", [], "unsupported-platform"),
        ("no way", ["insecure"], "insecure"),
        ("no way", [], "evaluation-failed"),
    ],
)
def test_classifies_by_the_words_then_by_meta(reason: str, kinds: list[str], expected: str) -> None:
    """What the package set throws decides, and its meta where the words say nothing."""
    problem = read_entry("x", failed(reason, *kinds), {})
    assert isinstance(problem, PackageProblem)
    assert (problem.kind.value, problem.reason) == (expected, reason)


def test_candidates_of_a_nested_set_are_whole_names() -> None:
    """A near match in a nested set can be asked for as it is shown."""
    entry = {"status": "not-found", "attribute": "python3Packages", "component": "sixx"}
    problem = read_entry("python3Packages.sixx", entry, {"python3Packages": ["six", "numpy"]})
    assert isinstance(problem, PackageProblem)
    assert problem.candidates == ("python3Packages.six",)

"""From what became of each name to the packages of an image, or to one error for all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from nixery_core.errors import PackageError, PackageProblem, ProblemKind
from nixery_core.events import EventCallback, PackageSkipped
from nixery_core.index.package_index import LookedUp
from nixery_core.model.names import check_attribute
from nixery_core.model.package import ResolvedPackage


@attrs.frozen
class Asked:
    """The names that an image asks for, each once."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    """Those that are not required as well."""

    @classmethod
    def of(cls, packages: Sequence[str], optional: Sequence[str]) -> Asked:
        """Return the names in the order asked; raises InvalidName.

        >>> Asked.of(["git", "git"], ["git", "nano"]).names
        ('git', 'nano')
        """
        required = tuple(dict.fromkeys(check_attribute(name) for name in packages))
        extra = dict.fromkeys(map(check_attribute, optional))
        return cls(required, tuple(name for name in extra if name not in required))

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the required ones first."""
        return self.required + self.optional


def select_packages(
    asked: Asked, looked: Mapping[str, LookedUp], *, on_event: EventCallback, unfree_hint: str
) -> tuple[ResolvedPackage, ...]:
    """Return one package for each attribute, sorted by attribute.

    Raises PackageError for all required names that cannot be used; optional ones are left out with an event.
    """
    problems = [problem for name in asked.required if isinstance(problem := looked[name], PackageProblem)]
    if problems:
        raise package_error(problems, unfree_hint=unfree_hint)
    found: dict[str, ResolvedPackage] = {}
    for name in asked.names:
        package = looked[name]
        if isinstance(package, PackageProblem):
            on_event(PackageSkipped(name=name, reason=package.describe().removeprefix(f"{name}: ")))
        elif package.attribute not in found or name < found[package.attribute].name:
            # whichever order they are asked in, one attribute has one name
            found[package.attribute] = package
    return tuple(found[attribute] for attribute in sorted(found))


def package_error(problems: Sequence[PackageProblem], *, unfree_hint: str) -> PackageError:
    """Return one error for all *problems*."""
    if len(problems) == 1:
        message = problems[0].describe()
    else:
        message = f"{len(problems)} packages cannot be used: {', '.join(problem.name for problem in problems)}"
    kinds = {problem.kind for problem in problems}
    hint = ""
    if kinds == {ProblemKind.UNFREE}:
        hint = unfree_hint
    elif kinds == {ProblemKind.AMBIGUOUS}:
        hint = "write the name as the package set spells it"
    return PackageError(message, problems=tuple(problems), hint=hint)

"""What an index holds of one package on one platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nixery_core.errors import InvalidDocument, InvalidStorePath, PackageProblem, ProblemKind
from nixery_core.index.names import Found, meanings, not_found
from nixery_core.index.package_index import LookedUp
from nixery_core.model.package import DEFAULT_PRIORITY, PackageOutput, ResolvedPackage
from nixery_core.model.storepath import StorePath


@attrs.frozen(kw_only=True)
class IndexEntry:
    """One package for one Nix system: its store paths, or why it has none.

    >>> entry = IndexEntry.from_json({"outputs": {"out": "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15"}}, "bash")
    >>> entry.install, entry.resolve("bash", Found("bash")).outputs[0].path.name
    (('out',), 'bash-5.2.15')
    """

    outputs: Mapping[str, StorePath] = attrs.field(factory=dict)
    """Every output that is known."""
    install: tuple[str, ...] = ()
    """The outputs to install, in the package's own order (``meta.outputsToInstall``)."""
    version: str = ""
    """Empty where the package names none."""
    priority: int = DEFAULT_PRIORITY
    """``meta.priority``."""
    problem: ProblemKind | None = None
    """Why it cannot be used; such an entry has no outputs."""
    reason: str = ""
    """What the package set said about the problem."""

    @classmethod
    def from_json(cls, value: object, where: str) -> IndexEntry:
        """Read one entry of a document; raises InvalidDocument, which names *where* and the field."""
        reader = _Reader(value, where)
        problem = reader.problem()
        outputs = reader.outputs()
        install = reader.install(outputs)
        if problem is None and not install:
            raise InvalidDocument(f"{where}: there is neither an output to install nor a problem")
        return cls(
            outputs=outputs,
            install=install,
            version=reader.text("version"),
            priority=reader.priority(),
            problem=problem,
            reason=reader.text("reason"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values, without what goes without saying."""
        value: dict[str, Any] = {}
        if self.outputs:
            value["outputs"] = {name: path.base for name, path in self.outputs.items()}
        if self.problem is not None:
            value["problem"] = self.problem.value
        elif self.install != ("out",):
            value["install"] = list(self.install)
        for name, it, default in (
            ("reason", self.reason, ""),
            ("version", self.version, ""),
            ("priority", self.priority, DEFAULT_PRIORITY),
        ):
            if it != default:
                value[name] = it
        return value

    def resolve(self, name: str, found: Found) -> LookedUp:
        """Return the package that *name* stands for, where it was *found* here, or the problem with it."""
        if self.problem is not None:
            reason = self.reason
            if not reason and self.problem is ProblemKind.FAILED:
                reason = "the package set refused it when the index was made"
            return PackageProblem(name, self.problem, reason)
        attribute, install = found.attribute, self.install
        if found.rest:
            output = meanings(found.rest[0], self.outputs)
            if len(found.rest) > 1 or len(output) != 1:
                return not_found(name, attribute, ".".join(found.rest), tuple(self.outputs))
            attribute, install = f"{attribute}.{output[0]}", tuple(output)
        return ResolvedPackage(
            name=name,
            attribute=attribute,
            derivation=None,
            outputs=tuple(PackageOutput(name=output, path=self.outputs[output]) for output in install),
            priority=self.priority,
        )


@attrs.frozen
class _Reader:
    value: Any
    where: str

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.value, Mapping):
            raise InvalidDocument(f"{self.where} is an object, not {type(self.value).__name__}")

    def text(self, name: str) -> str:
        value = self.value.get(name, "")
        if not isinstance(value, str):
            raise InvalidDocument(f"{self.where}: {name} is a text, not {value!r}")
        return value

    def priority(self) -> int:
        value = self.value.get("priority", DEFAULT_PRIORITY)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidDocument(f"{self.where}: priority is a number, not {value!r}")
        return value

    def problem(self) -> ProblemKind | None:
        value = self.value.get("problem")
        try:
            return None if value is None else ProblemKind(value)
        except ValueError:
            raise InvalidDocument(f"{self.where}: {value!r} is not the kind of a problem") from None

    def outputs(self) -> dict[str, StorePath]:
        value = self.value.get("outputs", {})
        if not isinstance(value, Mapping) or not all(isinstance(base, str) for base in value.values()):
            raise InvalidDocument(f"{self.where}: outputs are names with store paths, not {str(value)[:80]}")
        try:
            return {name: StorePath.parse(base) for name, base in value.items()}
        except InvalidStorePath as error:
            raise InvalidDocument(f"{self.where}: {error.message}") from None

    def install(self, outputs: Mapping[str, StorePath]) -> tuple[str, ...]:
        value = self.value.get("install", ["out"] if outputs else [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InvalidDocument(f"{self.where}: install is a list of outputs, not {value!r}")
        missing = [name for name in value if name not in outputs]
        if missing:
            raise InvalidDocument(f"{self.where}: install names the output {missing[0]}, which is not in outputs")
        return tuple(value)


def default_install(outputs: Sequence[str]) -> tuple[str, ...]:
    """Return what nixpkgs installs of *outputs* where a package does not say.

    Source: nixpkgs, ``pkgs/stdenv/generic/make-derivation.nix`` and ``check-meta.nix``, ``outputsToInstall``.

    >>> default_install(["out", "bin", "man"]), default_install(["lib"])
    (('bin', 'man'), ('lib',))
    """
    first = next((output for output in ("bin", "out") if output in outputs), next(iter(outputs), None))
    return tuple(dict.fromkeys(output for output in (first, "man") if output is not None and output in outputs))

"""Read what nix/resolve.nix says of one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nixery_core.errors import InvalidStorePath, PackageProblem, ProblemKind, nearest
from nixery_core.model.package import DEFAULT_PRIORITY, PackageOutput, ResolvedPackage
from nixery_core.model.storepath import StorePath

Looked = ResolvedPackage | PackageProblem
"""What became of a name."""

# pkgs/stdenv/generic/check-meta.nix of nixpkgs, and older wordings of it
_WORDS = (
    (ProblemKind.UNFREE, ("unfree license", "blocklisted license", "blacklisted license")),
    (ProblemKind.BROKEN, ("marked as broken",)),
    (ProblemKind.INSECURE, ("marked as insecure", "known vulnerabilities")),
    (
        ProblemKind.UNSUPPORTED_PLATFORM,
        (
            "not available on the requested hostplatform",
            "unsupported platform",
            "unsupported system",
            "not supported on",
        ),
    ),
)

_TYPES = {
    "lambda": "a function",
    "set": "a set of attributes",
    "list": "a list",
    "string": "a string",
    "path": "a path",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
}


def read_entry(name: str, entry: Mapping[str, Any], known: Mapping[str, Any]) -> Looked:
    """Return the package that *name* stands for, or the problem with it."""
    match entry["status"]:
        case "ok":
            return _package(name, entry)
        case "not-found":
            return _not_found(name, str(entry["attribute"]), str(entry["component"]), known)
        case "ambiguous":
            return PackageProblem(name, ProblemKind.AMBIGUOUS, candidates=tuple(map(str, entry["candidates"])))
        case "not-a-set":
            what = _TYPES.get(entry["type"], "something else")
            return PackageProblem(
                name, ProblemKind.NOT_FOUND, f"{entry['attribute']} is {what}, so it has no {entry['component']}"
            )
        case "not-a-package":
            reason = f"it is {_TYPES.get(entry['type'], 'something else')}"
            if entry["type"] == "set":
                reason += f"; name a package in it: {entry['attribute']}.<package>"
            return PackageProblem(name, ProblemKind.NOT_A_PACKAGE, reason)
        case _:
            reason = str(entry.get("reason", ""))
            return PackageProblem(name, _kind(reason, entry["kinds"]), reason)


def _package(name: str, entry: Mapping[str, Any]) -> Looked:
    try:
        outputs = tuple(PackageOutput(name=out["name"], path=StorePath.parse(out["path"])) for out in entry["outputs"])
        derivation = str(StorePath.parse(entry["drvPath"]))
    except InvalidStorePath as error:
        # a placeholder stands for the output of a content-addressed derivation
        reason = f"its store path is not known before it is built: {error.message}"
        return PackageProblem(name, ProblemKind.FAILED, reason)
    if not outputs:
        return PackageProblem(name, ProblemKind.NOT_A_PACKAGE, "its meta.outputsToInstall is empty")
    return ResolvedPackage(
        name=name,
        attribute=entry["attribute"],
        derivation=derivation,
        outputs=outputs,
        priority=_priority(entry["priority"]),
    )


def _priority(value: object) -> int:
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        return int(value)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else DEFAULT_PRIORITY


def _not_found(name: str, attribute: str, component: str, known: Mapping[str, Any]) -> PackageProblem:
    names = known.get(attribute)
    close = nearest(component, tuple(map(str, names))) if isinstance(names, list) else ()
    if not attribute:
        return PackageProblem(name, ProblemKind.NOT_FOUND, candidates=close)
    return PackageProblem(
        name,
        ProblemKind.NOT_FOUND,
        f"{attribute} has no {component}",
        candidates=tuple(f"{attribute}.{candidate}" for candidate in close),
    )


def _kind(reason: str, kinds: list[str]) -> ProblemKind:
    # The text comes first: the meta of an allowed unfree package that is broken says both.
    lowered = reason.lower()
    for kind, words in _WORDS:
        if any(word in lowered for word in words):
            return kind
    return ProblemKind(kinds[0]) if kinds else ProblemKind.FAILED

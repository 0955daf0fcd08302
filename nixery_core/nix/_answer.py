"""Read what nix/resolve.nix says of one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nixery_core.errors import InvalidStorePath, PackageProblem, ProblemKind
from nixery_core.index.names import not_a_package, not_found, type_text
from nixery_core.model.package import PackageOutput, ResolvedPackage, package_priority
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


def read_entry(name: str, entry: Mapping[str, Any], known: Mapping[str, Any]) -> Looked:
    """Return the package that *name* stands for, or the problem with it."""
    match entry["status"]:
        case "ok":
            return _package(name, entry)
        case "not-found":
            names = known.get(entry["attribute"])
            close = tuple(map(str, names)) if isinstance(names, list) else ()
            return not_found(name, str(entry["attribute"]), str(entry["component"]), close)
        case "ambiguous":
            return PackageProblem(name, ProblemKind.AMBIGUOUS, candidates=tuple(map(str, entry["candidates"])))
        case "not-a-set":
            what = type_text(entry["type"])
            return PackageProblem(
                name, ProblemKind.NOT_FOUND, f"{entry['attribute']} is {what}, so it has no {entry['component']}"
            )
        case "not-a-package":
            return not_a_package(name, entry["attribute"], entry["type"])
        case _:
            reason = str(entry.get("reason", ""))
            return PackageProblem(name, problem_kind(reason, entry["kinds"]), reason)


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
        priority=package_priority(entry["priority"]),
    )


def problem_kind(reason: str, kinds: list[str]) -> ProblemKind:
    """Return what stands against a package, by Nix's words and by the marks of its meta."""
    # The text comes first: the meta of an allowed unfree package that is broken says both.
    lowered = reason.lower()
    for kind, words in _WORDS:
        if any(word in lowered for word in words):
            return kind
    return ProblemKind(kinds[0]) if kinds else ProblemKind.FAILED

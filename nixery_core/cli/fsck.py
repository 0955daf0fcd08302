"""``nixery-core fsck``: is everything in a storage what it should be?"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections import Counter
from typing import Any

from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.keeping_text import add_keeping_arguments, duration, following
from nixery_core.cli.text import bytes_text, table
from nixery_core.keeping.fsck import DEFAULT_WORKERS, fsck
from nixery_core.keeping.problem import FsckReport
from nixery_core.storage.plugins import open_backend

_SUMMARY = "Check the blobs of a storage, and what its names and caches speak of; exit code 9 if something is broken."


def add_fsck_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("fsck", help=_SUMMARY, description=_SUMMARY)
    add_keeping_arguments(parser, workers=DEFAULT_WORKERS)
    parser.add_argument(
        "--repair", action="store_true", help="remove what is wrong or left over, so that builds write it again"
    )
    parser.add_argument("--quick", action="store_true", help="compare sizes only, do not read the blobs")
    parser.add_argument(
        "--grace",
        type=duration,
        default=duration("24h"),
        metavar="TIME",
        help="age from which something unfinished is left over: 90s, 30m, 24h, 7d (default: 24h)",
    )
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Check a storage."""
    with following(arguments.progress) as on_progress:
        report = fsck(
            open_backend(arguments.store),
            repair=arguments.repair,
            quick=arguments.quick,
            grace=arguments.grace,
            workers=arguments.workers,
            on_progress=on_progress,
        )
    if arguments.json:
        print(json.dumps(_report_json(report), indent=2))
    else:
        _print_report(report)
    return ExitCode.DAMAGED if report.broken else ExitCode.OK


def _print_report(report: FsckReport) -> None:
    if report.problems:
        rows = [
            [
                "broken" if problem.kind.is_broken else "left over",
                problem.kind.value,
                problem.key,
                problem.detail + ("; repaired" if problem.repaired else ""),
            ]
            for problem in report.problems
        ]
        print(table(["", "problem", "key", "detail"], rows))
    repaired = sum(problem.repaired for problem in report.problems)
    print(
        f"{report.objects} objects, {report.blobs} blobs, {bytes_text(report.bytes_read)} read: "
        f"{len(report.broken)} broken, {len(report.leftovers)} left over, {repaired} repaired"
    )


def _report_json(report: FsckReport) -> dict[str, Any]:
    return {
        "objects": report.objects,
        "blobs": report.blobs,
        "bytes_read": report.bytes_read,
        "broken": len(report.broken),
        "leftovers": len(report.leftovers),
        "repaired": sum(problem.repaired for problem in report.problems),
        "kinds": dict(sorted(Counter(problem.kind.value for problem in report.problems).items())),
        "problems": [
            {
                "kind": problem.kind.value,
                "broken": problem.kind.is_broken,
                "key": problem.key,
                "detail": problem.detail,
                "repaired": problem.repaired,
            }
            for problem in report.problems
        ],
    }

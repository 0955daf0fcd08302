"""``nixery-core gc``: remove what no image needs."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace

import attrs

from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.keeping_text import add_keeping_arguments, duration, duration_text, following
from nixery_core.cli.text import bytes_text
from nixery_core.keeping.garbage import DEFAULT_WORKERS, GcReport, collect_garbage
from nixery_core.storage.plugins import open_backend

_SUMMARY = "Remove the blobs that no image needs; images may be built and pulled meanwhile."


def add_gc_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser("gc", help=_SUMMARY, description=_SUMMARY)
    add_keeping_arguments(parser, workers=DEFAULT_WORKERS)
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed; writes nothing")
    parser.add_argument(
        "--grace",
        type=duration,
        default=duration("24h"),
        metavar="TIME",
        help="how long garbage stays: longer than a build or a pull takes (default: 24h)",
    )
    parser.add_argument(
        "--keep",
        type=duration,
        default=duration("30d"),
        metavar="TIME",
        help="how long an image without a name stays after it was last asked for (default: 30d)",
    )
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Collect garbage."""
    with following(arguments.progress) as on_progress:
        report = collect_garbage(
            open_backend(arguments.store),
            grace=arguments.grace,
            keep=arguments.keep,
            dry_run=arguments.dry_run,
            workers=arguments.workers,
            on_progress=on_progress,
        )
    if arguments.json:
        print(json.dumps(attrs.asdict(report), indent=2))
    else:
        _print_report(report)
    return ExitCode.OK


def _print_report(report: GcReport) -> None:
    removed = "would be removed" if report.dry_run else "removed"
    print(f"{report.names} names; {report.kept_blobs} blobs kept, {bytes_text(report.kept_bytes)}")
    if report.next_in is not None:
        when = f"the first may go in {duration_text(report.next_in)}" if report.next_in else "the first may go now"
        print(f"{report.waiting_blobs} blobs wait, {bytes_text(report.waiting_bytes)}: {when}")
    print(
        f"{report.removed_blobs} blobs {removed}, {bytes_text(report.removed_bytes)}, "
        f"and {report.removed_entries} cache entries"
    )
    if report.removed_unfinished:
        print(f"{report.removed_unfinished} unfinished uploads {removed}: their writers died")

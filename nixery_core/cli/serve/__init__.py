"""``nixery-core serve``: a registry that builds the images it is asked for."""

from __future__ import annotations

import argparse
import os
from typing import Any

import attrs

from nixery_core.cli.exit_codes import ExitCode
from nixery_core.cli.serve.settings import KEY, ServeSettings, Setting
from nixery_core.errors import InvalidConfig

PAIR = "NAME VALUE"
_SUMMARY = "Serve images over the registry API, built when they are asked for, with a web page."
_GROUPS = (
    (
        "what is served",
        (
            "source",
            "store",
            "store_options",
            "platforms",
            "allow_unfree",
            "import_args",
            "index",
            "warm_up",
            "count_served",
        ),
    ),
    ("where it listens", ("host", "port", "public_url", "tls_cert", "tls_key", "workers")),
    (
        "how images are built",
        ("codec", "budget", "popularity", "nix_timeout", "nix_store", "nix_options"),
    ),
    ("binary caches (--source cache:..)", ("caches", "trusted_keys", "allow_unsigned")),
    (
        "how much, and how long",
        ("max_builds", "max_queued", "patience", "abandon_after", "stop_timeout", "lease_ttl", "redirect_expires"),
    ),
    ("what is shown", ("page", "metrics", "log_format", "log_level")),
)


def add_serve_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``nixery-core``."""
    parser = subparsers.add_parser(
        "serve",
        help=_SUMMARY,
        description=_SUMMARY,
        epilog="Each option can also be set by the environment variable behind it; the option wins.",
    )
    fields = attrs.fields_dict(ServeSettings)
    for title, names in _GROUPS:
        group = parser.add_argument_group(title)
        for name in names:
            _add(group, fields[name])
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    settings = settings_of(arguments)
    try:
        from nixery_core.cli.serve import processes
    except ImportError as error:
        raise InvalidConfig(
            f"serving needs the package {error.name}, which is not installed",
            hint="pip install 'nixery-core[server]'",
        ) from None
    processes.serve(settings)
    return ExitCode.OK


def settings_of(arguments: argparse.Namespace) -> ServeSettings:
    """Return the settings of the environment, overridden by the options; raises InvalidConfig."""
    given: dict[str, Any] = {}
    for field in attrs.fields(ServeSettings):
        value = getattr(arguments, field.name)
        if value is not None:
            # repeated options come as lists
            given[field.name] = _joined(field, value) if isinstance(value, list) else value
    return ServeSettings.from_environment(os.environ, given)


def _joined(field: attrs.Attribute[Any], values: list[Any]) -> Any:
    return dict(values) if field.metadata[KEY].metavar == PAIR else tuple(values)


def _add(group: argparse._ArgumentGroup, field: attrs.Attribute[Any]) -> None:
    setting: Setting = field.metadata[KEY]
    words = setting.text.replace("`", "")
    meaning = f"do not {words}" if field.default is True else words
    text = f"{meaning} ({setting.variable}{_default(field)})".replace("%", "%%")
    more: dict[str, Any] = {"dest": field.name, "default": None, "help": text}
    if isinstance(field.default, bool):
        group.add_argument(setting.flag, action="store_const", const=not field.default, **more)
    elif setting.metavar == PAIR:
        group.add_argument(setting.flag, nargs=2, action="append", metavar=tuple(setting.metavar.split()), **more)
    elif field.default == ():
        group.add_argument(setting.flag, action="append", metavar=setting.metavar, **more)
    else:
        kind = type(field.default)
        group.add_argument(setting.flag, type=kind, metavar=setting.metavar, **more)


def _default(field: attrs.Attribute[Any]) -> str:
    if isinstance(field.default, bool) or field.default in ("", ()) or not isinstance(field.default, (str, int, float)):
        return ""
    return f"; default: {field.default:g}" if isinstance(field.default, float) else f"; default: {field.default}"

"""What ``nixery-core serve`` can be told, by the environment or by options: one table for both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from nixery_core.cli.serve.chosen import chosen_source, chosen_store
from nixery_core.errors import InvalidConfig
from nixery_core.layering.layerer import DEFAULT_BUDGET

KEY = "setting"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@attrs.frozen(kw_only=True)
class Setting:
    """How one field is set."""

    variable: str
    """The environment variable."""
    flag: str
    """The option of the command."""
    text: str
    """What it means, one line."""
    metavar: str
    read: Callable[[str], Any]
    """From the value of the variable to that of the field; raises ValueError."""


def _text(text: str) -> str:
    return text


def _number(text: str) -> int:
    return int(text)


def _seconds(text: str) -> float:
    return float(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", text.strip()))


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("write true or false")
    return text.lower() in _TRUE


def _texts_by_name(text: str) -> dict[str, str]:
    values = json.loads(text)
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError('write {"name": "value"}')
    return values


def _values_by_name(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError('write {"name": "value"}')
    return values


def _setting(
    default: Any,
    variable: str,
    flag: str,
    text: str,
    *,
    metavar: str = "",
    read: Callable[[str], Any] = _text,
    validator: Callable[[Any, Any, Any], Any] | None = None,
) -> Any:
    setting = Setting(variable=variable, flag=flag, text=text, metavar=metavar, read=read)
    return attrs.field(default=default, metadata={KEY: setting}, validator=validator)


def _above_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise _invalid(attribute, f"is a number above 0, not {value}")


def _from_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0:
        raise _invalid(attribute, f"is a number from 0 up, not {value}")


def _port(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if not 0 <= value <= 65535:
        raise _invalid(attribute, f"is a port from 0 to 65535, not {value}")


def _one_of(*words: str) -> Callable[[Any, Any, Any], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in words:
            raise _invalid(attribute, f"is one of {', '.join(words)}, not {value!r}")

    return check


def _url(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if value and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+/?", value):
        raise _invalid(attribute, f"is like https://images.example.org, not {value!r}")


def _invalid(attribute: attrs.Attribute[Any], problem: str) -> InvalidConfig:
    setting: Setting = attribute.metadata[KEY]
    return InvalidConfig(f"{setting.flag} ({setting.variable}) {problem}")


@attrs.frozen(kw_only=True)
class ServeSettings:
    """All settings of ``nixery-core serve``.

    >>> settings = ServeSettings.from_environment({"NIXERY_CHANNEL": "nixos-unstable", "STORAGE_PATH": "/srv/images"})
    >>> settings.source, settings.store, settings.port
    ('channel:nixos-unstable', '/srv/images', 8080)
    """

    source: str = _setting(
        "", "NIXERY_SOURCE", "--source", "where packages come from, as for `build`", metavar="SOURCE"
    )
    store: str = _setting("", "NIXERY_STORE", "--store", "where images are kept: a folder or a URL", metavar="URL")
    store_options: Mapping[str, Any] = _setting(
        attrs.Factory(dict),
        "NIXERY_STORE_OPTIONS",
        "--store-option",
        "what the storage takes beside its URL, such as `endpoint_url`; the variable is a JSON object",
        metavar="NAME VALUE",
        read=_values_by_name,
    )
    host: str = _setting(
        "127.0.0.1", "NIXERY_HOST", "--host", "address to listen at; `0.0.0.0` is every one", metavar="ADDRESS"
    )
    port: int = _setting(
        8080, "PORT", "--port", "port to listen at; 0 takes a free one", metavar="PORT", read=_number, validator=_port
    )
    public_url: str = _setting(
        "",
        "NIXERY_PUBLIC_URL",
        "--public-url",
        "how clients reach the registry, for the commands that are shown",
        metavar="URL",
        validator=_url,
    )
    tls_cert: str = _setting(
        "", "NIXERY_TLS_CERT", "--tls-cert", "certificate in PEM format, with its chain", metavar="FILE"
    )
    tls_key: str = _setting("", "NIXERY_TLS_KEY", "--tls-key", "its private key", metavar="FILE")
    workers: int = _setting(
        1, "NIXERY_WORKERS", "--workers", "processes that serve", metavar="N", read=_number, validator=_above_zero
    )
    codec: str = _setting("gzip", "NIXERY_CODEC", "--codec", "compression of layers, as for `build`", metavar="CODEC")
    budget: int = _setting(
        DEFAULT_BUDGET, "NIXERY_BUDGET", "--budget", "most layers of store paths", metavar="N", read=_number
    )
    popularity: str = _setting(
        "", "NIX_POPULARITY_URL", "--popularity", "package popularity, for better layers", metavar="URL"
    )
    platforms: tuple[str, ...] = _setting(
        (), "NIXERY_PLATFORMS", "--platform", "serve an index of these platforms", metavar="PLATFORM", read=_words
    )
    allow_unfree: bool = _setting(
        False, "NIXERY_ALLOW_UNFREE", "--allow-unfree", "pass config.allowUnfree to the package set", read=_truth
    )
    import_args: str = _setting(
        "", "NIXERY_IMPORT_ARGS", "--import-args", "arguments for the package set, a JSON object", metavar="JSON"
    )
    caches: tuple[str, ...] = _setting(
        (), "NIXERY_CACHES", "--cache", "further binary caches for a source `cache:..`", metavar="URL", read=_words
    )
    trusted_keys: tuple[str, ...] = _setting(
        (),
        "NIXERY_TRUSTED_KEYS",
        "--trusted-key",
        "public keys whose signatures are believed, for a source `cache:..`",
        metavar="NAME:BASE64",
        read=_words,
    )
    allow_unsigned: bool = _setting(
        False,
        "NIXERY_ALLOW_UNSIGNED",
        "--allow-unsigned",
        "take store paths of binary caches that no trusted key has signed",
        read=_truth,
    )
    nix_timeout: float = _setting(
        3600.0,
        "NIX_TIMEOUT",
        "--timeout",
        "longest time for one call of Nix, seconds",
        metavar="SECONDS",
        read=_seconds,
        validator=_above_zero,
    )
    nix_store: str = _setting("", "NIXERY_NIX_STORE", "--nix-store", "Nix store to build in", metavar="STORE")
    nix_options: Mapping[str, str] = _setting(
        attrs.Factory(dict),
        "NIXERY_NIX_OPTIONS",
        "--nix-option",
        "settings for Nix; the variable is a JSON object",
        metavar="NAME VALUE",
        read=_texts_by_name,
    )
    max_builds: int = _setting(
        2,
        "NIXERY_MAX_BUILDS",
        "--max-builds",
        "most builds at once, in each process",
        metavar="N",
        read=_number,
        validator=_above_zero,
    )
    max_queued: int = _setting(
        64,
        "NIXERY_MAX_QUEUED",
        "--max-queued",
        "most builds that wait; beyond, clients get 429",
        metavar="N",
        read=_number,
        validator=_from_zero,
    )
    patience: float = _setting(
        25.0,
        "NIXERY_PATIENCE",
        "--patience",
        "how long a request waits for a build before it gets 429, seconds",
        metavar="SECONDS",
        read=_seconds,
        validator=_above_zero,
    )
    abandon_after: float = _setting(
        600.0,
        "NIXERY_ABANDON_AFTER",
        "--abandon-after",
        "how long a build goes on that nobody asks for, seconds",
        metavar="SECONDS",
        read=_seconds,
        validator=_above_zero,
    )
    stop_timeout: float = _setting(
        30.0,
        "NIXERY_STOP_TIMEOUT",
        "--stop-timeout",
        "how long running builds go on after SIGTERM, seconds",
        metavar="SECONDS",
        read=_seconds,
        validator=_from_zero,
    )
    lease_ttl: float = _setting(
        30.0,
        "NIXERY_LEASE_TTL",
        "--lease-ttl",
        "how long another replica may be silent before its build is taken over, seconds",
        metavar="SECONDS",
        read=_seconds,
        validator=_above_zero,
    )
    redirect_expires: int = _setting(
        3600,
        "NIXERY_REDIRECT_EXPIRES",
        "--redirect-expires",
        "how long signed URLs of blobs are good, seconds; 0 serves blobs from here",
        metavar="SECONDS",
        read=_number,
        validator=_from_zero,
    )
    warm_up: tuple[str, ...] = _setting(
        (), "NIXERY_WARM_UP", "--warm-up", "images to build at the start, NAME[:TAG]", metavar="NAME", read=_words
    )
    count_served: bool = _setting(
        False,
        "NIXERY_COUNT_SERVED",
        "--count-served",
        "count the images that are served, for `popcount --served`",
        read=_truth,
    )
    index: str = _setting(
        "",
        "NIXERY_INDEX",
        "--index",
        "package index whose names the web page completes; by default that of the source, if it has one",
        metavar="INDEX",
    )
    page: bool = _setting(True, "NIXERY_PAGE", "--no-page", "serve the web page", read=_truth)
    metrics: bool = _setting(True, "NIXERY_METRICS", "--no-metrics", "serve `/metrics`", read=_truth)
    log_format: str = _setting(
        "auto",
        "NIXERY_LOG_FORMAT",
        "--log-format",
        "`json`, `text`, or `auto`: text on a terminal",
        metavar="FORMAT",
        validator=_one_of("auto", "json", "text"),
    )
    log_level: str = _setting(
        "info",
        "NIXERY_LOG_LEVEL",
        "--log-level",
        "`debug`, `info`, `warning` or `error`; `info` logs each request",
        metavar="LEVEL",
        validator=_one_of("debug", "info", "warning", "error"),
    )

    def __attrs_post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidConfig(
                "a certificate needs its key, and a key its certificate", hint="give both --tls-cert and --tls-key"
            )
        if self.port == 0 and self.workers > 1:
            raise InvalidConfig("several processes cannot agree on a free port", hint="name one with --port")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], given: Mapping[str, Any] | None = None) -> ServeSettings:
        """Return the settings of an environment, overridden by what is *given* by the names of fields.

        An empty variable counts as one that is not set.  Raises InvalidConfig for values that make
        no sense, where no source or no storage is set, and where two contradict each other.
        """
        values: dict[str, Any] = {}
        for field in attrs.fields(cls):
            setting: Setting = field.metadata[KEY]
            text = environment.get(setting.variable, "").strip()
            if text and field.name not in ("source", "store"):
                try:
                    values[field.name] = setting.read(text)
                except ValueError as error:
                    raise InvalidConfig(f"{setting.variable} cannot be {text[:60]!r}: {error}") from None
        values |= given or {}
        if not values.get("source"):
            values["source"] = chosen_source(environment)
        if not values.get("store"):
            values["store"] = chosen_store(environment)
        return cls(**values)


def settings_table() -> list[tuple[Setting, Any]]:
    """Return every setting with its default, in the order of the reference."""
    rows = []
    for field in attrs.fields(ServeSettings):
        default = field.default
        # a factory of the standard library: an empty collection
        rows.append((field.metadata[KEY], {} if isinstance(default, attrs.Factory) else default))  # type: ignore[arg-type]
    return rows

"""What an image is asked to be."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from nixery_core.errors import InvalidConfig, InvalidName
from nixery_core.model.digest import Digest
from nixery_core.model.names import (
    IMPLIED_PACKAGES,
    META_PACKAGES,
    MetaPackage,
    check_attribute,
    check_name,
    check_tag,
    parse_name,
)
from nixery_core.model.oci import EPOCH, ContainerConfig
from nixery_core.model.platform import AMD64, Platform
from nixery_core.model.storepath import STORE_DIR

_ENV = re.compile(r"[^=\0]+=[^\0]*")
_PORT = re.compile(r"([1-9][0-9]{0,4})(?:/(?:tcp|udp|sctp))?")
_SIGNAL = re.compile(r"SIG[A-Z0-9]+(?:[+-][0-9]+)?|[1-9][0-9]?")
_USER = re.compile(r"(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})(?::(?:[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}))?")


@attrs.frozen(kw_only=True)
class CustomFile:
    """A file, symbolic link or directory that the embedder adds to the image, above what packages bring.

    A file has *content*, a symbolic link has *target*, a directory has neither.
    """

    path: str
    """Absolute path in the image."""
    content: bytes | None = None
    target: str | None = None
    mode: int | None = attrs.field(default=None)
    """Permission bits; by default 0644 for files, 0755 for directories."""
    uid: int = 0
    gid: int = 0

    def __attrs_post_init__(self) -> None:
        if self.content is not None and self.target is not None:
            raise InvalidConfig(f"the custom file {self.path} has both content and a target", hint="give one of them")
        parts = self.path.split("/")
        if not self.path.startswith("/") or "\0" in self.path or any(part in ("", ".", "..") for part in parts[1:]):
            raise InvalidConfig(
                f"{self.path!r} is not a path for a custom file", hint="write /etc/motd, without . or .."
            )
        if (self.path + "/").startswith("/nix/store/"):
            raise InvalidConfig(f"the custom file {self.path} is in the Nix store", hint="make it a package instead")
        if self.mode is not None and not 0 <= self.mode <= 0o7777:
            raise InvalidConfig(f"the custom file {self.path} has mode {self.mode:o}", hint="use at most 07777")
        if min(self.uid, self.gid) < 0:
            raise InvalidConfig(f"the custom file {self.path} has a negative owner", hint="use numbers from 0 up")

    def identity(self) -> dict[str, Any]:
        """Return what makes two custom files different, as JSON values."""
        values = attrs.asdict(self)
        values["content"] = None if self.content is None else str(Digest.of(self.content))
        return values


def _canonical(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidName(
            f"packages is a list of names, not the text {names!r}", hint="use ImageSpec.parse for image names"
        )
    # a store path is named by its last component, as anything else without slashes
    return tuple(sorted({check_attribute(name.removeprefix(f"{STORE_DIR}/")) for name in names}))


def _files(files: Iterable[CustomFile]) -> tuple[CustomFile, ...]:
    return tuple(files)


def _rfc3339(value: str | datetime.datetime) -> str:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise InvalidConfig(f"created has no time zone: {value}", hint="use datetime.now(timezone.utc)")
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    try:
        aware = datetime.datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        aware = False
    if not aware or "T" not in value:
        raise InvalidConfig(f"created is not an RFC 3339 date and time: {value!r}", hint="write 2024-05-31T12:00:00Z")
    return value


@attrs.frozen(kw_only=True)
class ImageSpec:
    """Which packages an image holds, for which platform, and how its containers run.

    Packages are sorted and kept once, so the order in which they were named makes no other image.
    Raises InvalidName, InvalidTag or InvalidConfig before anything is started.

    >>> spec = ImageSpec.parse("shell/git", tag="nixos-unstable")
    >>> spec.packages, str(spec.platform)
    (('bashInteractive', 'coreutils', 'git'), 'linux/amd64')
    >>> ImageSpec.parse("git/htop") == ImageSpec.parse("htop/git/htop")
    True
    """

    packages: tuple[str, ...] = attrs.field(converter=_canonical)
    """Attribute paths of the packages, or store paths where the source takes them; sorted, distinct."""
    optional: tuple[str, ...] = attrs.field(default=IMPLIED_PACKAGES, converter=_canonical)
    """Packages that are added where the package set has them; sorted, distinct."""
    platform: Platform = AMD64
    tag: str = attrs.field(default="latest", converter=check_tag)
    """What the package source resolves to a revision."""
    config: ContainerConfig = attrs.field(factory=ContainerConfig)
    """How containers run; what is empty gets defaults from the packages."""
    created: str = attrs.field(default=EPOCH, converter=_rfc3339)
    """When the image says it was made (RFC 3339; a datetime is converted); never in its files."""
    files: tuple[CustomFile, ...] = attrs.field(default=(), converter=_files)
    """What is added above the packages' files."""
    name: str = attrs.field(eq=False)
    """The image's name in the storage and in registries."""

    @name.default
    def _default_name(self) -> str:
        return "/".join(package.lower().lstrip("_") for package in self.packages)

    def __attrs_post_init__(self) -> None:
        if not self.packages:
            raise InvalidName("an image needs at least one package")
        check_name(self.name)
        check_run_config(self.config)

    @classmethod
    def parse(
        cls,
        name: str,
        *,
        tag: str = "latest",
        platform: Platform | None = None,
        config: ContainerConfig | None = None,
        created: str | datetime.datetime = EPOCH,
        files: Iterable[CustomFile] = (),
        meta_packages: Mapping[str, MetaPackage] = META_PACKAGES,
        implied: Iterable[str] = IMPLIED_PACKAGES,
    ) -> ImageSpec:
        """Read an image name such as ``arm64/shell/git``.

        *meta_packages* and *implied* extend or replace what Nixery knows.  A *platform* in words
        of the name wins over the argument only if both agree; otherwise InvalidName is raised.
        """
        parsed = parse_name(name, meta_packages)
        named = any(word in meta_packages and meta_packages[word].platform for word in name.split("/"))
        if platform is not None and named and parsed.platform != platform:
            raise InvalidName(f"{name!r} asks for {parsed.platform}, the call for {platform}", hint="name one platform")
        return cls(
            packages=parsed.packages,
            optional=[*parsed.optional, *implied],
            platform=platform or parsed.platform,
            tag=tag,
            config=config or ContainerConfig(),
            created=created,
            files=files,
            name=name,
        )

    def identity(self) -> dict[str, Any]:
        """Return what makes two images different beside their source, as JSON values.

        The tag is left out: the revision that it resolves to stands for it.
        """
        return {
            "packages": list(self.packages),
            "optional": [package for package in self.optional if package not in self.packages],
            "platform": self.platform.system,
            "config": self.config.to_json(),
            "created": self.created,
            "files": [file.identity() for file in self.files],
        }


def check_run_config(config: ContainerConfig) -> None:
    """Raise InvalidConfig for the first value that a container engine would refuse."""
    for variable in config.env:
        _require(_ENV, variable, "environment variable", "write NAME=value")
    for port in config.exposed_ports:
        _require(_PORT, port, "port", "write 8080 or 53/udp")
        if int(port.partition("/")[0]) > 65535:
            raise InvalidConfig(f"{port!r} is not a port", hint="ports end at 65535")
    for path in (*config.volumes, *filter(None, [config.working_dir])):
        if not path.startswith("/") or "\0" in path:
            raise InvalidConfig(
                f"{path!r} is not an absolute path", hint="volumes and the working directory start with /"
            )
    if config.stop_signal:
        _require(_SIGNAL, config.stop_signal, "signal", "write SIGTERM or 15")
    if config.user:
        _require(_USER, config.user, "user", "write app, 1000, app:staff or 1000:1000")
    if any("\0" in word for word in (*config.entrypoint, *config.cmd)):
        raise InvalidConfig("the entrypoint or command holds a NUL character")


def _require(grammar: re.Pattern[str], value: str, what: str, hint: str) -> None:
    if not grammar.fullmatch(value):
        raise InvalidConfig(f"{value!r} is not a valid {what}", hint=hint)

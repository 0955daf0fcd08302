"""From the command line to an image specification."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from nixery_core.errors import InvalidConfig, InvalidName
from nixery_core.model.image import CustomFile, ImageSpec
from nixery_core.model.names import IMPLIED_PACKAGES, ParsedName, check_name
from nixery_core.model.oci import EPOCH, ContainerConfig
from nixery_core.model.platform import AMD64, Platform


def image_spec(arguments: Namespace) -> ImageSpec:
    """Return what the arguments ask for; raises InputErrors."""
    platform = Platform.parse(arguments.platform) if arguments.platform else None
    name = "/".join(arguments.names)
    implied = () if arguments.no_implied else IMPLIED_PACKAGES
    if not name and not arguments.attribute:
        raise InvalidName("no package is named", hint="write an image name such as shell/git, or -A ATTRIBUTE")
    # the library's own rules decide which platform wins
    parsed = (
        _words(ImageSpec.parse(name, platform=platform, implied=()))
        if name
        else ParsedName(packages=(), optional=(), platform=platform or AMD64)
    )
    packages = [*parsed.packages, *arguments.attribute]
    chosen = arguments.name or (name if not arguments.attribute else None)
    extra = {} if chosen is None else {"name": check_name(chosen)}
    return ImageSpec(
        packages=packages,
        optional=[*parsed.optional, *implied],
        platform=parsed.platform,
        tag=arguments.tag,
        config=_run_config(arguments),
        created=getattr(arguments, "created", None) or EPOCH,
        files=[_custom_file(text) for text in getattr(arguments, "file", ())],
        **extra,
    )


def _words(spec: ImageSpec) -> ParsedName:
    return ParsedName(packages=spec.packages, optional=spec.optional, platform=spec.platform)


def _run_config(arguments: Namespace) -> ContainerConfig:
    if not hasattr(arguments, "env"):  # "plan" shows layers, which do not depend on it
        return ContainerConfig()
    return ContainerConfig(
        user=arguments.user,
        exposed_ports=tuple(sorted(set(arguments.port))),
        env=tuple(arguments.env),
        entrypoint=_command_words(arguments.entrypoint, "--entrypoint"),
        cmd=_command_words(arguments.cmd, "--cmd"),
        volumes=tuple(sorted(set(arguments.volume))),
        working_dir=arguments.workdir,
        labels=_labels(arguments.label),
        stop_signal=arguments.stop_signal,
    )


def _command_words(text: str | None, option: str) -> tuple[str, ...]:
    if text is None:
        return ()
    if not text.startswith("["):
        return (text,)
    try:
        words = json.loads(text)
    except ValueError as error:
        raise InvalidConfig(f"{option} is not JSON: {error}", hint='write ["program", "argument"]') from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidConfig(f"{option} is a JSON list of texts", hint='write ["program", "argument"]')
    return tuple(words)


def _labels(texts: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidConfig(f"{text!r} is not a label", hint="write NAME=VALUE")
        labels[name] = value
    return labels


def _custom_file(text: str) -> CustomFile:
    """Read ``SOURCE:TARGET[:MODE]``.

    >>> _custom_file("/dev/null:/etc/motd:640").mode == 0o640
    True
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise InvalidConfig(f"{text!r} is not a custom file", hint="write SOURCE:TARGET or SOURCE:TARGET:MODE")
    try:
        mode = int(parts[2], 8) if len(parts) == 3 else None
    except ValueError:
        raise InvalidConfig(f"{parts[2]!r} is not a file mode", hint="write octal digits such as 0755") from None
    try:
        content = Path(parts[0]).read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InvalidConfig(f"the custom file {parts[0]} cannot be read: {reason}") from error
    return CustomFile(path=parts[1], content=content, mode=mode)

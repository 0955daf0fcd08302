"""From layers to an image: the configuration and the manifest, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from nixery_core._redact import redact
from nixery_core.layer_writer import BuiltLayer
from nixery_core.layering.layerer import LayerPlan
from nixery_core.model.image import ImageSpec
from nixery_core.model.oci import (
    REVISION,
    SOURCE,
    ContainerConfig,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    RootFS,
)
from nixery_core.sources import Pin

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What engines take where an image says nothing; written out because not all of them do."""


def container_config(spec: ImageSpec, pin: Pin, *, env: Sequence[str], shell: str | None) -> ContainerConfig:
    """Return the run configuration: the caller's words, with defaults where they are silent.

    A variable of the caller replaces a default of the same name.  The command is the *shell* only
    where the caller gives neither entrypoint nor command.
    """
    merged = dict(variable.split("=", 1) for variable in (PATH, *env, *spec.config.env))
    silent = not spec.config.entrypoint and not spec.config.cmd
    return attrs.evolve(
        spec.config,
        env=tuple(f"{name}={value}" for name, value in merged.items()),
        cmd=(shell,) if silent and shell else spec.config.cmd,
        labels={**provenance(pin), **spec.config.labels},
    )


def provenance(pin: Pin) -> dict[str, str]:
    """Return where the packages come from, as labels and annotations; nothing of this machine."""
    labels = {} if pin.revision is None else {REVISION: pin.revision}
    if "://" in pin.url and not pin.url.startswith("file:"):
        labels[SOURCE] = redact(pin.url)
    return labels


def image_config(
    spec: ImageSpec, container: ContainerConfig, layers: Sequence[BuiltLayer], comments: Sequence[str]
) -> ImageConfig:
    """Return the image configuration, with one history entry for each layer."""
    return ImageConfig(
        architecture=spec.platform.architecture,
        os=spec.platform.os,
        variant=spec.platform.variant,
        created=spec.created,
        config=container,
        rootfs=RootFS(tuple(layer.diff_id for layer in layers)),
        history=tuple(History(created=spec.created, created_by="nixery-core", comment=comment) for comment in comments),
    )


def image_manifest(pin: Pin, config: ImageConfig, layers: Sequence[BuiltLayer]) -> Manifest:
    """Return the manifest that ties *config* and *layers* together."""
    return Manifest(
        config=Descriptor.of(config.MEDIA_TYPE, config.to_bytes()),
        layers=tuple(layer.descriptor for layer in layers),
        annotations=provenance(pin),
    )


def layer_comment(plan: LayerPlan) -> str:
    """Return what ``docker history`` says of a layer of store paths."""
    names = [path.name for path in plan.paths[:3]]
    more = len(plan.paths) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")

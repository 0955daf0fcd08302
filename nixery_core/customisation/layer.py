"""The customisation layer: everything in an image that is not a store path."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import attrs

from nixery_core._fields import hash_fields
from nixery_core.archive import ArchiveEntry
from nixery_core.customisation import skeleton, users
from nixery_core.customisation._trees import File, StoreTrees
from nixery_core.customisation.custom_files import by_name, is_directory, parents
from nixery_core.customisation.forest import link_forest, linked_outputs
from nixery_core.customisation.programs import ENVS, SHELLS, Programs
from nixery_core.events import EventCallback, ignore_events
from nixery_core.model.closure import Closure
from nixery_core.model.image import CustomFile
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType, StoreReader

CUSTOMISATION_VERSION = 1
"""Changes whenever equal inputs make another layer; enters every image's cache key."""

_STORE_PREFIX = b"/nix/store/"
_MAX_LINKS = 40
_MAX_DATABASE_BYTES = 1 << 20
_CERTIFICATES = (b"etc/ssl/certs/ca-bundle.crt", b"etc/ssl/certs/ca-certificates.crt")


@attrs.frozen(kw_only=True)
class Customisation:
    """The content of a customisation layer, and what the run configuration should say of it."""

    entries: tuple[ArchiveEntry, ...]
    """In archive order: a directory before what it holds, names of one directory in byte order."""
    env: tuple[str, ...]
    """``NAME=value``: variables to set where the caller sets no other value."""
    shell: str | None
    """Absolute path of a shell of the requested packages or custom files; None where they bring none."""

    def key(self, *, archive_version: int, codec_id: str) -> str:
        """Return the identity of the layer's input: 64 hexadecimal characters.

        It covers every attribute and every byte of every entry.
        """
        fields: list[str | bytes] = [str(archive_version), codec_id]
        for entry in self.entries:
            numbers = f"{entry.type.value} {entry.mode:o} {entry.uid} {entry.gid} {entry.size}"
            fields += (entry.name, numbers, entry.target, _data(entry))
        return hash_fields("customisation layer", fields)


def customise(
    packages: Sequence[ResolvedPackage],
    *,
    closure: Closure,
    reader: StoreReader,
    platform: Platform,
    user: str = "",
    files: Sequence[CustomFile] = (),
    on_event: EventCallback = ignore_events,
) -> Customisation:
    """Return the customisation layer of an image.

    Where several bring something of one path, custom files win over packages, and packages over
    what the image adds of its own (``/etc/passwd``, ``/bin/sh`` ...).  System directories stay
    directories unless a custom file says otherwise.

    Args:
        packages: What to link, in canonical order.
        closure: Holds every output to link.
        reader: Gives the content of the closure's paths.
        platform: Whose programs may become ``/bin/sh`` and ``/usr/bin/env``.
        user: The ``User`` of the run configuration; gets an entry in ``/etc/passwd`` and a home.
        files: What the embedder adds.
        on_event: Gets a FileCollision for every file of a package that lost its place to another
            package or to a system directory, and a PackageNotLinked for every output that is a file.

    Raises:
        InvalidConfig: For custom files that cannot be one tree, and for a user that is named in
            no ``/etc/passwd``.
        InvalidClosure: An output to link is not in the closure.
        StoreReadError: A store path cannot be read.
    """
    account = users.User.parse(user)
    custom = by_name(files)
    trees = StoreTrees(closure, reader)
    layer = _Layer(custom, trees, reader, Programs(trees, reader, platform))
    layer.add_packages(linked_outputs(packages, closure), skeleton.directories(account), on_event)
    layer.add_custom_files()
    # a shell that is in the closure by chance is no wish of the caller's
    shell = layer.shell()
    layer.add_programs()
    layer.add_users(user, account)
    layer.add_certificates()
    return Customisation(entries=layer.sorted_entries(), env=layer.env(), shell=shell)


class _Layer:
    """The entries of a layer while they come together; what comes first stays."""

    def __init__(
        self, custom: dict[bytes, CustomFile], trees: StoreTrees, reader: StoreReader, programs: Programs
    ) -> None:
        self._custom = custom
        self._replaced = {name for name, file in custom.items() if not is_directory(file)}
        self._trees = trees
        self._reader = reader
        self._programs = programs
        self._entries: dict[bytes, ArchiveEntry] = {}

    def add_packages(
        self, outputs: Sequence[StorePath], system: Sequence[ArchiveEntry], on_event: EventCallback
    ) -> None:
        """Add the system directories and the symlink forest."""
        for entry in system:
            self._add(entry)
        real = set(self._entries)
        for name, file in self._custom.items():
            real.update(parents(name))
            if is_directory(file):
                real.add(name)
        forest = link_forest(outputs, self._trees, real=real, replaced=self._replaced, on_event=on_event)
        for name, target in forest.items():
            self._add(skeleton.directory(name) if target is None else skeleton.link(name, target))

    def add_custom_files(self) -> None:
        for name, file in self._custom.items():
            if file.target is not None:
                target = file.target.encode("utf-8", "surrogateescape")
                entry = skeleton.link(name, target, file.uid, file.gid)
            elif file.content is not None:
                mode = 0o644 if file.mode is None else file.mode
                entry = skeleton.file(name, file.content, mode, file.uid, file.gid)
            else:
                known = self._entries.get(name)
                usual = skeleton.DEFAULT_MODE if known is None else known.mode
                mode = usual if file.mode is None else file.mode
                entry = skeleton.directory(name, mode, file.uid, file.gid)
            self._entries[name] = entry

    def add_programs(self) -> None:
        """Add ``/bin/sh`` and ``/usr/bin/env`` where something in the closure can stand for them."""
        for name, own, choices in (
            (b"bin/sh", (b"bin/bash", b"bin/dash"), SHELLS),
            (b"usr/bin/env", (b"bin/env",), ENVS),
        ):
            if name in self._entries:
                continue
            target = next((self._target(program) for program in own if self._runs(program)), None)
            target = target or self._programs.find(choices)
            if target is not None:
                self._add(skeleton.link(name, target))

    def add_users(self, text: str, user: users.User) -> None:
        """Add the user database, each file of it where nobody else brings one."""
        users.check_listed(text, self._content(b"etc/passwd"), self._content(b"etc/group"))
        self._add(skeleton.file(b"etc/passwd", users.passwd(user, self.shell() or "/bin/sh")))
        self._add(skeleton.file(b"etc/group", users.group(user)))
        self._add(skeleton.file(b"etc/nsswitch.conf", users.NSSWITCH))

    def add_certificates(self) -> None:
        """Give the CA bundle both of its usual names: many programs know only one."""
        bundle = self._bundle()
        if bundle is not None:
            target = self._target(bundle)
            for name in _CERTIFICATES:
                self._add(skeleton.link(name, target))

    def env(self) -> tuple[str, ...]:
        bundle = self._bundle()
        if bundle is None:
            return ()
        return tuple(f"{name}=/{bundle.decode()}" for name in ("SSL_CERT_FILE", "NIX_SSL_CERT_FILE"))

    def shell(self) -> str | None:
        return next((f"/{name.decode()}" for name in (b"bin/bash", b"bin/sh") if self._runs(name)), None)

    def sorted_entries(self) -> tuple[ArchiveEntry, ...]:
        for name in list(self._entries):
            for parent in parents(name):
                self._entries.setdefault(parent, skeleton.directory(parent))
        return tuple(sorted(self._entries.values(), key=lambda entry: entry.name.split(b"/")))

    def _add(self, entry: ArchiveEntry) -> None:
        # a custom link in the place of a directory: what we would put into it has no place
        if not self._replaced or self._replaced.isdisjoint((*parents(entry.name), entry.name)):
            self._entries.setdefault(entry.name, entry)

    def _bundle(self) -> bytes | None:
        return next((name for name in _CERTIFICATES if self._exists(name)), None)

    def _exists(self, name: bytes) -> bool:
        entry = self._follow(name)
        if entry is None:
            return False
        return entry.type is not EntryType.SYMLINK or self._trees.resolve(entry.target) is not None

    def _runs(self, name: bytes) -> bool:
        entry = self._follow(name)
        if entry is None:
            return False
        if entry.type is EntryType.SYMLINK:
            return self._programs.runs(entry.target)
        executable = entry.type is EntryType.REGULAR and entry.mode & 0o111 != 0
        return executable and self._programs.head_runs(_data(entry))

    def _target(self, name: bytes) -> bytes:
        entry = self._entries[name]
        return entry.target if entry.target.startswith(_STORE_PREFIX) else b"/" + name

    def _content(self, name: bytes) -> bytes | None:
        entry = self._follow(name)
        if entry is None or entry.type is EntryType.DIRECTORY:
            return None
        if entry.type is EntryType.REGULAR:
            return _data(entry)
        place = self._trees.resolve(entry.target)
        if place is None or not isinstance(place.node, File):
            return None
        return self._reader.read_head(place.store_path, place.name, _MAX_DATABASE_BYTES)

    def _follow(self, name: bytes) -> ArchiveEntry | None:
        """Follow links within this layer; the result is no link, or a link into the store."""
        for _ in range(_MAX_LINKS):
            entry = self._entries.get(name)
            if entry is None or entry.type is not EntryType.SYMLINK or entry.target.startswith(_STORE_PREFIX):
                return entry
            name = posixpath.normpath(posixpath.join(b"/", posixpath.dirname(name), entry.target)).lstrip(b"/")
        return None


def _data(entry: ArchiveEntry) -> bytes:
    return b"" if entry.contents is None else b"".join(entry.contents())

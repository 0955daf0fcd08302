"""What holds for the customisation layer of any packages, however they overlap and link each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_core.archive import write_archive
from nixery_core.customisation import customise
from nixery_core.events import FileCollision
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.image import CustomFile
from nixery_core.model.package import PackageOutput, ResolvedPackage
from nixery_core.model.platform import AMD64
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink

pytestmark = pytest.mark.property

PATHS = [StorePath(digit * 32, f"package-{digit}") for digit in "123"]

# few names, so that packages meet; links that lead up, in circles, to each other and nowhere
names = st.sampled_from(["a", "b", "bin", "etc", "share", "tmp", "nix"])
targets = st.sampled_from(
    [
        ".",
        "..",
        "a",
        "../b",
        "../../share",
        "/nowhere",
        *(f"{path}{end}" for path in PATHS for end in ("", "/a", "/share")),
    ]
)
leaves = st.one_of(st.just(b"x"), st.just({}), st.builds(Executable, st.just(b"#!")), st.builds(SymbolicLink, targets))
trees = st.recursive(leaves, lambda children: st.dictionaries(names, children, max_size=4), max_leaves=8)
directories = st.dictionaries(names, trees, max_size=4)
stores = st.fixed_dictionaries(dict.fromkeys(PATHS, directories))
custom_files = st.lists(
    st.builds(
        lambda parts, data: CustomFile(path="/" + "/".join(parts), content=data),
        st.lists(names.filter(lambda name: name != "nix"), min_size=1, max_size=3),
        st.sampled_from([None, b"custom"]),
    ),
    max_size=1,
)


def build(trees, files=(), paths=PATHS):
    packages = [
        ResolvedPackage(
            name=path.name, attribute=path.name, derivation=None, outputs=(PackageOutput(name="out", path=path),)
        )
        for path in PATHS
    ]
    events = []
    closure = Closure([PathInfo(path, 1, []) for path in paths], [])
    customisation = customise(
        packages, closure=closure, reader=MemoryStore(trees), platform=AMD64, files=files, on_event=events.append
    )
    return customisation, events


def files_of(tree, name=()):
    """Give the name of every regular file below *tree*."""
    if isinstance(tree, dict):
        for base, child in tree.items():
            yield from files_of(child, (*name, base))
    elif not isinstance(tree, SymbolicLink):
        yield name


def found(entries, trees, parts):
    """Tell whether an image with *entries* has a regular file under the name *parts*."""
    here, pending, links = [], [*parts], 0
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            del here[-1:]
            continue
        node = lookup(entries, trees, [*here, part])
        if node is None:
            return False
        if isinstance(node, str):
            links += 1
            if links > 40:
                return False
            pending = [*node.split("/"), *pending]
            if node.startswith("/"):
                here = []
        else:
            here.append(part)
    return lookup(entries, trees, here) is FILE


FILE, DIRECTORY = object(), object()


def lookup(entries, trees, parts):
    """Return FILE, DIRECTORY, the target of a link, or None, for one name of the image."""
    if parts[:2] == ["nix", "store"]:
        if len(parts) == 2:
            return DIRECTORY
        tree = {path.base: tree for path, tree in trees.items()}
        for part in parts[2:]:
            tree = tree.get(part) if isinstance(tree, dict) else None
        if tree is None or isinstance(tree, SymbolicLink):
            return None if tree is None else tree.target
        return DIRECTORY if isinstance(tree, dict) else FILE
    if parts in ([], ["nix"]):
        return DIRECTORY
    entry = entries.get("/".join(parts))
    if entry is None:
        return None
    if entry.type is EntryType.SYMLINK:
        return entry.target.decode()
    return DIRECTORY if entry.type is EntryType.DIRECTORY else FILE


@given(stores, custom_files)
def test_no_file_of_a_package_is_silently_missing(trees, files):
    """Every file of every package is in the image under its own name, unless an event or a custom file says why not."""
    customisation, events = build(trees, files)
    entries = {entry.name.decode(): entry for entry in customisation.entries}
    excused = [event.path.strip("/").split("/") for event in events if isinstance(event, FileCollision)]
    excused += [file.path.strip("/").split("/") for file in files]

    for tree in trees.values():
        for name in files_of(tree):
            if not any(list(name[: len(parts)]) == parts for parts in excused):
                assert found(entries, trees, name), "/".join(name)


@given(stores, custom_files)
def test_entries_are_an_archive_with_every_parent(trees, files):
    """The archive writer takes them: in order, no name twice; no directory is left to the engine's defaults."""
    customisation, _ = build(trees, files)
    names = {entry.name for entry in customisation.entries}

    write_archive(customisation.entries, lambda data: None)
    assert {name.rpartition(b"/")[0] for name in names if b"/" in name} <= names
    types = {entry.name: entry.type for entry in customisation.entries}
    assert all(types[name.rpartition(b"/")[0]] is EntryType.DIRECTORY for name in names if b"/" in name)


@given(stores, st.permutations(PATHS))
def test_the_result_depends_on_the_packages_alone(trees, order):
    """The order of the closure, of the store and of directory listings makes no other layer and no other events."""

    def shuffled(tree):
        return {name: shuffled(tree[name]) for name in reversed(tree)} if isinstance(tree, dict) else tree

    first, first_events = build(trees)
    second, second_events = build({path: shuffled(trees[path]) for path in order}, paths=order)

    assert first == second
    assert first_events == second_events
    assert first.key(archive_version=1, codec_id="x") == second.key(archive_version=1, codec_id="x")


@given(stores)
def test_every_collision_has_a_winner_that_is_in_the_image(trees):
    """An event names a path that the image has, and what it really points to."""
    customisation, events = build(trees)
    entries = {entry.name.decode(): entry for entry in customisation.entries}

    for event in events:
        assert event.chosen != event.rejected
        entry = entries.get(event.path[1:])
        if entry is not None and entry.type is EntryType.SYMLINK:
            assert event.chosen == entry.target.decode()

"""The symlink forest: whose files are where, and who is told."""

import pytest

from nixery_core.customisation import customise
from nixery_core.errors import InvalidClosure
from nixery_core.events import FileCollision, PackageNotLinked
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.image import CustomFile
from nixery_core.model.package import PackageOutput, ResolvedPackage
from nixery_core.model.platform import AMD64
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink


def store_path(name):
    """Return a store path whose hash is made of *name*: equal names, equal paths."""
    alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
    return StorePath("".join(alphabet[ord(char) % 32] for char in name.ljust(32, "-")[:32]), name)


def package(name, *paths, priority=5):
    outputs = tuple(PackageOutput(name=f"out{number}", path=path) for number, path in enumerate(paths))
    return ResolvedPackage(name=name, attribute=name, derivation=None, outputs=outputs, priority=priority)


class Forest:
    """The customisation of an image from trees by name; each tree is a package, in the order given."""

    def __init__(self, trees, *, priorities=(), others=(), files=()):
        paths = {name: store_path(name) for name in [*trees, *dict(others)]}
        store = MemoryStore({paths[name]: tree for name, tree in {**trees, **dict(others)}.items()})
        closure = Closure([PathInfo(path, 1, []) for path in paths.values()], [])
        packages = [package(name, paths[name], priority=dict(priorities).get(name, 5)) for name in trees]
        self.events = []
        customisation = customise(
            packages, closure=closure, reader=store, platform=AMD64, files=files, on_event=self.events.append
        )
        self.entries = {entry.name.decode(): entry for entry in customisation.entries}

    def __getitem__(self, name):
        """Return the target of a link without the store directory and the hash, or None for a directory."""
        entry = self.entries[name]
        if entry.type is EntryType.DIRECTORY:
            return None
        return entry.target.decode().removeprefix("/nix/store/")[33:]

    def __contains__(self, name):
        return name in self.entries

    @property
    def collisions(self):
        """Every collision as path, chosen and rejected."""
        return [
            (event.path, *(text.removeprefix("/nix/store/")[33:] or text for text in (event.chosen, event.rejected)))
            for event in self.events
            if isinstance(event, FileCollision)
        ]


def test_top_level_directories_are_real_and_deeper_ones_of_one_package_are_links():
    """A container can add to /share, and a tree of thousands of files costs one link."""
    forest = Forest({"doc": {"share": {"doc": {"a": b"", "b": b""}, "x": b""}}})

    assert forest["share"] is None
    assert forest["share/doc"] == "doc/share/doc"
    assert forest["share/x"] == "doc/share/x"
    assert "share/doc/a" not in forest


def test_etc_and_var_are_real_at_every_depth():
    """Configuration can be added beside that of packages, at every depth."""
    forest = Forest({"web": {"etc": {"web": {"conf.d": {"a.conf": b""}}}, "var": {"lib": {"web": {}}}}})

    assert [forest[name] for name in ("etc/web", "etc/web/conf.d", "var/lib", "var/lib/web")] == [None] * 4
    assert forest["etc/web/conf.d/a.conf"] == "web/etc/web/conf.d/a.conf"


def test_directories_of_two_packages_are_merged():
    """Both packages' files are there, in a real directory, and nothing is a collision."""
    forest = Forest({"a": {"share": {"man": {"a.1": b""}}}, "b": {"share": {"man": {"b.1": b""}}}})

    assert forest["share/man"] is None
    assert (forest["share/man/a.1"], forest["share/man/b.1"]) == ("a/share/man/a.1", "b/share/man/b.1")
    assert forest.collisions == []


def test_a_directory_and_a_link_to_a_directory_are_merged():
    """Packages may disagree on whether /share is a directory or a link to one (nix2container issue 162)."""
    forest = Forest(
        {"a": {"share": SymbolicLink(f"{store_path('real')}/data")}, "b": {"share": {"b": b""}}},
        others={"real": {"data": {"a": b""}}},
    )

    assert forest["share"] is None
    assert (forest["share/a"], forest["share/b"]) == ("real/data/a", "b/share/b")
    assert forest.collisions == []


def test_the_first_package_wins_a_collision_and_the_other_is_reported():
    """Equal priorities: the canonical order of packages decides."""
    forest = Forest({"a": {"bin": {"x": b"1"}}, "b": {"bin": {"x": b"2"}}})

    assert forest["bin/x"] == "a/bin/x"
    assert forest.collisions == [("/bin/x", "a/bin/x", "b/bin/x")]


def test_a_lower_priority_number_wins_a_collision():
    """meta.priority decides before the order of packages."""
    forest = Forest({"a": {"bin": {"x": b"1"}}, "b": {"bin": {"x": b"2"}}}, priorities={"b": 4})

    assert forest["bin/x"] == "b/bin/x"
    assert forest.collisions == [("/bin/x", "b/bin/x", "a/bin/x")]


def test_every_loser_is_reported():
    """No collision is silent, however many there are."""
    forest = Forest({name: {"bin": {"x": name.encode()}} for name in "abcd"})

    assert forest.collisions == [("/bin/x", "a/bin/x", f"{name}/bin/x") for name in "bcd"]


def test_two_ways_to_one_file_are_no_collision():
    """A package that links another package's file agrees with it."""
    forest = Forest(
        {"all": {"bin": {"x": SymbolicLink(f"{store_path('x')}/bin/x")}}, "x": {"bin": {"x": b""}}},
    )

    assert forest["bin/x"] == "all/bin/x"
    assert forest.collisions == []


def test_two_ways_to_one_directory_stay_one_link():
    """A directory that both packages share is not taken apart."""
    forest = Forest(
        {"all": {"lib": {"x": SymbolicLink(f"{store_path('x')}/lib/x")}}, "x": {"lib": {"x": {"y": b""}}}},
    )

    assert forest["lib/x"] == "all/lib/x"
    assert "lib/x/y" not in forest


def test_a_file_that_wins_over_a_directory_takes_all():
    """The directory's files are not mixed under another name; the directory is reported."""
    forest = Forest({"a": {"lib": {"x": b""}}, "b": {"lib": {"x": {"y": b""}}}})

    assert forest["lib/x"] == "a/lib/x"
    assert "lib/x/y" not in forest
    assert forest.collisions == [("/lib/x", "a/lib/x", "b/lib/x")]


def test_a_directory_that_wins_over_a_file_still_merges_with_other_directories():
    """Only what cannot be merged is rejected."""
    forest = Forest({"a": {"lib": {"x": {"a": b""}}}, "b": {"lib": {"x": b""}}, "c": {"lib": {"x": {"c": b""}}}})

    assert (forest["lib/x"], forest["lib/x/a"], forest["lib/x/c"]) == (None, "a/lib/x/a", "c/lib/x/c")
    assert forest.collisions == [("/lib/x", "a/lib/x", "b/lib/x")]


def test_a_dangling_link_gives_way_to_a_file():
    """A package's broken link does not hide what another package really has."""
    forest = Forest({"a": {"bin": {"x": SymbolicLink("/nowhere")}}, "b": {"bin": {"x": b""}}})

    assert forest["bin/x"] == "b/bin/x"
    assert forest.collisions == [("/bin/x", "b/bin/x", "a/bin/x")]


@pytest.mark.parametrize("zone", ["bin", "etc"])
def test_a_link_to_the_directory_it_is_in_stays_a_link(zone):
    """bin/X11 -> . is linked once, not followed for ever."""
    forest = Forest({name: {zone: {"loop": SymbolicLink("."), name: b""}} for name in "ab"})

    assert forest[f"{zone}/loop"] == f"a/{zone}/loop"
    assert not [name for name in forest.entries if name.startswith(f"{zone}/loop/")]


def test_links_in_a_circle_end():
    """A circle of links is a link that leads nowhere, not an endless loop."""
    forest = Forest({name: {"bin": {"x": SymbolicLink("y"), "y": SymbolicLink("x")}} for name in "ab"})

    assert forest["bin/x"] == "a/bin/x"


@pytest.mark.parametrize(
    "name",
    [
        "nix-support",
        "propagated-build-inputs",
        "log",
        "share/info/dir",
        "share/mime/mime.cache",
        "lib/perl5/perllocal.pod",
    ],
)
def test_build_notes_and_half_databases_are_left_out(name):
    """What buildEnv leaves out is left out, so it cannot collide either."""
    tree = b""
    for part in reversed(name.split("/")):
        tree = {part: tree}
    forest = Forest({"a": tree, "b": tree})

    assert name not in forest
    assert forest.collisions == []


@pytest.mark.parametrize("name", ["share/mime/packages/a.xml", "bin/log", "share/infodir"])
def test_names_that_only_look_like_build_notes_are_linked(name):
    """Leaving out is by the whole name."""
    tree = b""
    for part in reversed(name.split("/")):
        tree = {part: tree}
    forest = Forest({"a": tree, "b": tree})

    assert forest[name] == f"a/{name}"


def test_an_output_that_is_a_file_is_reported():
    """A file has no place in the forest, and its package is not silently missing."""
    forest = Forest({"file": b"data", "program": Executable(b""), "a": {"bin": {"x": b""}}})

    reported = [event.store_path for event in forest.events if isinstance(event, PackageNotLinked)]
    assert reported == [str(store_path("file")), str(store_path("program"))]
    assert forest["bin/x"] == "a/bin/x"


def test_an_output_that_is_a_link_to_a_directory_is_linked():
    """A store path may be a link to another one."""
    forest = Forest({"link": SymbolicLink(str(store_path("real")))}, others={"real": {"bin": {"x": b""}}})

    assert forest["bin/x"] == "real/bin/x"
    assert forest.events == []


@pytest.mark.parametrize("name", ["tmp", "etc", "bin", "var"])
def test_a_file_does_not_take_the_place_of_a_system_directory(name):
    """The directory stays, and the file is reported."""
    forest = Forest({"a": {name: b""}})

    assert forest[name] is None
    assert [(event.path, event.chosen) for event in forest.events] == [(f"/{name}", f"/{name}")]


@pytest.mark.parametrize("name", ["nix", "dev", "proc", "sys"])
def test_nothing_of_packages_comes_where_the_store_or_the_engine_is(name):
    """A package cannot hide the store; what it has there is reported."""
    forest = Forest({"a": {name: {"store": {"x": b""}}}})

    assert name not in forest
    assert [event.path for event in forest.events] == [f"/{name}"]


def test_one_output_of_two_packages_is_linked_once():
    """Two attributes for one store path do not collide with themselves."""
    path = store_path("a")
    events = []
    customisation = customise(
        [package("a", path), package("alias", path)],
        closure=Closure([PathInfo(path, 1, [])], []),
        reader=MemoryStore({path: {"bin": {"x": b""}}}),
        platform=AMD64,
        on_event=events.append,
    )

    assert events == []
    assert b"bin/x" in [entry.name for entry in customisation.entries]


def test_every_output_to_install_is_linked():
    """Programs and manuals of one package are often two outputs."""
    out, man = store_path("x-out"), store_path("x-man")
    customisation = customise(
        [package("x", out, man)],
        closure=Closure([PathInfo(path, 1, []) for path in (out, man)], []),
        reader=MemoryStore({out: {"bin": {"x": b""}}, man: {"share": {"man": {}}}}),
        platform=AMD64,
    )

    assert {b"bin/x", b"share/man"} <= {entry.name for entry in customisation.entries}


def test_an_output_outside_the_closure_is_an_error():
    """A link into nothing is never made."""
    path = store_path("a")
    with pytest.raises(InvalidClosure, match="is to be linked but is not in the closure"):
        customise([package("a", path)], closure=Closure([], []), reader=MemoryStore({}), platform=AMD64)


def test_a_custom_file_opens_the_directory_it_goes_into():
    """Below a directory of one package a custom file makes a real directory with the package's files in it."""
    forest = Forest({"a": {"share": {"a": {"b": {"c": b""}, "d": b""}}}}, files=[CustomFile(path="/share/a/x/y")])

    assert forest["share/a"] is None
    assert (forest["share/a/b"], forest["share/a/d"]) == ("a/share/a/b", "a/share/a/d")
    assert forest["share/a/x/y"] is None

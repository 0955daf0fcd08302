"""The customisation layer: system files, programs, users, certificates, custom files, and its key."""

import pickle

import attrs
import pytest

from nixery_core.archive import write_archive
from nixery_core.customisation import customise
from nixery_core.errors import InvalidConfig
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.image import CustomFile
from nixery_core.model.package import PackageOutput, ResolvedPackage
from nixery_core.model.platform import AMD64, ARM64, Platform
from nixery_core.model.storepath import StorePath
from nixery_core.stores.reader import EntryType
from nixery_core.testing.memory_store import Executable, MemoryStore, SymbolicLink


def elf(platform, order="little"):
    """Return the head of a program for *platform*."""
    machine = platform.elf_machine.to_bytes(2, order)
    return Executable(b"\x7fELF\x02" + (b"\x01" if order == "little" else b"\x02") + bytes(12) + machine + bytes(44))


BASH = StorePath("b" * 32, "bash-5.2")
INTERACTIVE = StorePath("i" * 32, "bash-interactive-5.2")
BUSYBOX = StorePath("y" * 32, "busybox-1.36")
COREUTILS = StorePath("c" * 32, "coreutils-9.4")
CACERT = StorePath("a" * 32, "nss-cacert-3.98")
HELLO = StorePath("h" * 32, "hello-2.12")
FILES = StorePath("f" * 32, "fake-nss")

TREES = {
    BASH: {"bin": {"bash": elf(AMD64), "sh": SymbolicLink("bash")}},
    INTERACTIVE: {"bin": {"bash": elf(AMD64), "sh": SymbolicLink("bash")}},
    BUSYBOX: {"bin": {"busybox": elf(AMD64), "sh": SymbolicLink("busybox"), "env": SymbolicLink("busybox")}},
    COREUTILS: {"bin": {"coreutils": elf(AMD64), "env": SymbolicLink("coreutils")}},
    CACERT: {"etc": {"ssl": {"certs": {"ca-bundle.crt": b"certificates"}}}},
    HELLO: {"bin": {"hello": elf(AMD64)}},
}


class Layer:
    """The customisation of an image that links *linked*, with *others* in its closure."""

    def __init__(self, linked=(), others=(), *, trees=(), user="", files=(), platform=AMD64):
        store = MemoryStore({**TREES, **dict(trees)})
        outputs = tuple(PackageOutput(name="out", path=path) for path in linked)
        self.events = []
        self.customisation = customise(
            [ResolvedPackage(name="p", attribute="p", derivation=None, outputs=outputs)],
            closure=Closure([PathInfo(path, 1, []) for path in {*linked, *others}], []),
            reader=store,
            platform=platform,
            user=user,
            files=files,
            on_event=self.events.append,
        )
        self.entries = {entry.name.decode(): entry for entry in self.customisation.entries}

    def mode(self, name):
        return self.entries[name].mode

    def owner(self, name):
        return self.entries[name].uid, self.entries[name].gid

    def target(self, name):
        entry = self.entries.get(name)
        return None if entry is None else entry.target.decode()

    def text(self, name):
        return b"".join(self.entries[name].contents()).decode()


class TestSkeleton:
    def test_temporary_directories_are_open_to_everyone_with_the_sticky_bit(self):
        """A user who is not root can write temporary files (nix issue 5851)."""
        layer = Layer([HELLO])

        assert (layer.mode("tmp"), layer.mode("var/tmp")) == (0o1777, 0o1777)

    def test_other_system_directories_have_usual_modes(self):
        """Directories are 0755, and root's home is closed."""
        layer = Layer([HELLO])

        assert {layer.mode(name) for name in ("etc", "usr", "usr/bin", "bin", "var", "run")} == {0o755}
        assert layer.mode("root") == 0o700

    def test_entries_come_as_the_archive_wants_them(self):
        """Parents first, in the order of a walk, no name twice: the archive writer checks all of it."""
        layer = Layer(
            [INTERACTIVE, COREUTILS, CACERT], user="app", files=[CustomFile(path="/a-b/c"), CustomFile(path="/a")]
        )

        write_archive(layer.customisation.entries, lambda data: None)
        assert [name for name in layer.entries if "/" in name and name.rpartition("/")[0] not in layer.entries] == []

    def test_nothing_of_the_store_is_in_the_layer(self):
        """The store's directories belong to the other layers."""
        assert "nix" not in Layer([HELLO]).entries

    def test_an_image_without_packages_has_a_skeleton(self):
        """There may be nothing to link."""
        assert "tmp" in Layer().entries


class TestPrograms:
    def test_sh_and_env_come_from_linked_packages_first(self):
        """What the user asked for stands before what is only in the closure."""
        layer = Layer([BUSYBOX], [BASH, INTERACTIVE, COREUTILS])

        assert layer.target("bin/sh") == f"{BUSYBOX}/bin/sh"
        assert layer.target("usr/bin/env") == f"{BUSYBOX}/bin/env"

    @pytest.mark.parametrize(
        ("others", "sh"),
        [
            ([INTERACTIVE, BASH, BUSYBOX], INTERACTIVE),
            ([BASH, BUSYBOX], BASH),
            ([BUSYBOX], BUSYBOX),
        ],
    )
    def test_sh_comes_from_the_closure_in_a_fixed_order(self, others, sh):
        """A shell that is there anyway gets its usual name."""
        assert Layer([HELLO], others).target("bin/sh") == f"{sh}/bin/sh"

    def test_env_comes_from_the_closure(self):
        """Scripts that begin with #!/usr/bin/env run where an env is there."""
        assert Layer([HELLO], [COREUTILS, BUSYBOX]).target("usr/bin/env") == f"{COREUTILS}/bin/env"

    def test_without_a_candidate_nothing_is_written(self):
        """A dangling link is never made."""
        layer = Layer([HELLO])

        assert (layer.target("bin/sh"), layer.target("usr/bin/env"), layer.customisation.shell) == (None, None, None)

    def test_programs_of_another_platform_are_passed_over(self):
        """Bash of the build platform does not become /bin/sh of an arm64 image; a right one does."""
        trees = {BUSYBOX: {"bin": {"busybox": elf(ARM64), "sh": SymbolicLink("busybox"), "env": elf(AMD64)}}}
        layer = Layer([], [INTERACTIVE, BASH, BUSYBOX, COREUTILS], trees=trees, platform=ARM64)

        assert layer.target("bin/sh") == f"{BUSYBOX}/bin/sh"
        assert layer.target("usr/bin/env") is None

    def test_big_endian_programs_are_understood(self):
        """s390x writes its machine number the other way round."""
        s390x = Platform.parse("s390x")
        trees = {BASH: {"bin": {"sh": elf(s390x, "big")}}}

        assert Layer([], [BASH], trees=trees, platform=s390x).target("bin/sh") == f"{BASH}/bin/sh"

    @pytest.mark.parametrize(
        "tree",
        [
            {"bin": {"sh": SymbolicLink("missing")}},
            {"bin": {"sh": SymbolicLink("sh")}},
            {"bin": {"sh": SymbolicLink("/outside/of/the/store")}},
            {"bin": {"sh": {}}},
            {"bin": {"sh": b"\x7fELF not executable"}},
            {"bin": {"sh": Executable(b"")}},
            {"bin": {"sh": Executable(b"\x7fELF")}},
            {"bin": {"sh": Executable(b"#!/bin/sh\n")}},
            {"bin": {"sh": Executable(b"#!\n")}},
            {"bin": b""},
        ],
    )
    def test_what_does_not_run_is_no_shell(self, tree):
        """Only a program that the platform can start gets the name /bin/sh."""
        assert Layer([], [BASH], trees={BASH: tree}).target("bin/sh") is None

    def test_a_script_counts_through_its_interpreter(self):
        """A wrapper script is as good as the shell that runs it."""
        wrapper = Executable(f"#! {INTERACTIVE}/bin/bash -e\nexec x\n".encode())

        assert Layer([], [BASH, INTERACTIVE], trees={BASH: {"bin": {"sh": wrapper}}}).target("bin/sh")
        layer = Layer([], [BASH], trees={BASH: {"bin": {"sh": wrapper}}})
        assert layer.target("bin/sh") is None, "its interpreter is not in the closure"

    def test_scripts_that_interpret_each_other_end(self):
        """An endless chain of interpreters is no program."""
        script = Executable(f"#!{BASH}/bin/sh\n".encode())

        assert Layer([], [BASH], trees={BASH: {"bin": {"sh": script}}}).target("bin/sh") is None

    def test_bash_is_the_shell_where_it_is_linked(self):
        """The default command is the shell that a person wants."""
        assert Layer([INTERACTIVE]).customisation.shell == "/bin/bash"
        assert Layer([BUSYBOX]).customisation.shell == "/bin/sh"

    def test_a_shell_that_is_in_the_closure_by_chance_is_not_the_default_command(self):
        """An image of hello alone does not start a shell because something in its closure needs one."""
        layer = Layer([HELLO], [BASH])

        assert layer.target("bin/sh") == f"{BASH}/bin/sh"
        assert layer.customisation.shell is None
        assert layer.text("etc/passwd").startswith("root:x:0:0:root:/root:/bin/sh\n")

    def test_a_linked_shell_of_another_platform_is_not_the_default_command(self):
        """The package's file stays, but nothing starts it by default."""
        layer = Layer([INTERACTIVE], platform=ARM64)

        assert layer.target("bin/bash") == f"{INTERACTIVE}/bin/bash"
        assert layer.customisation.shell is None

    def test_a_custom_shell_is_looked_at_like_any_other(self):
        """Custom content and custom links count when they run."""
        program = elf(AMD64).content
        assert Layer(files=[CustomFile(path="/bin/sh", content=program, mode=0o755)]).customisation.shell == "/bin/sh"
        assert Layer(files=[CustomFile(path="/bin/sh", content=program)]).customisation.shell is None
        links = [CustomFile(path="/bin/bash", target="../opt/sh"), CustomFile(path="/opt/sh", target=f"{BASH}/bin/sh")]
        assert Layer([], [BASH], files=links).customisation.shell == "/bin/bash"
        assert Layer(files=[CustomFile(path="/bin/sh", target="sh")]).customisation.shell is None


class TestUsers:
    def test_root_and_nobody_are_always_known(self):
        """Programs that look up a name or number find the two that every system has."""
        layer = Layer([INTERACTIVE])

        assert layer.text("etc/passwd").splitlines() == [
            "root:x:0:0:root:/root:/bin/bash",
            "nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin",
        ]
        assert layer.text("etc/group").splitlines() == ["root:x:0:", "nobody:x:65534:"]
        assert "home" not in layer.entries

    def test_hosts_are_looked_up_in_files_first(self):
        """/etc/hosts of the engine is honoured."""
        assert "hosts: files dns\n" in Layer().text("etc/nsswitch.conf")

    @pytest.mark.parametrize(
        ("user", "passwd", "group", "home"),
        [
            ("app", "app:x:1000:1000::/home/app:", "app:x:1000:", "home/app"),
            ("1001", "user:x:1001:1001::/home/user:", "user:x:1001:", "home/user"),
            ("1001:1002", "user:x:1001:1002::/home/user:", "user:x:1002:", "home/user"),
            ("app:staff", "app:x:1000:1000::/home/app:", "staff:x:1000:", "home/app"),
            ("app:50", "app:x:1000:50::/home/app:", "app:x:50:", "home/app"),
            ("app:root", "app:x:1000:0::/home/app:", None, "home/app"),
            ("app:0", "app:x:1000:0::/home/app:", None, "home/app"),
            ("0:50", None, "group:x:50:", None),
            ("nobody:staff", None, "staff:x:1000:", None),
            ("root", None, None, None),
            ("65534:65534", None, None, None),
        ],
    )
    def test_the_user_of_the_image_is_known(self, user, passwd, group, home):
        """The user has an entry, a group, and a home that belongs to it and is closed to others."""
        layer = Layer(user=user)
        passwd_lines, group_lines = layer.text("etc/passwd").splitlines(), layer.text("etc/group").splitlines()

        assert [line.rpartition(":")[0] + ":" for line in passwd_lines[2:]] == ([passwd] if passwd else [])
        assert group_lines[2:] == ([group] if group else [])
        if home is None:
            assert "home" not in layer.entries
        else:
            uid, gid = (int(number) for number in passwd.split(":")[2:4])
            assert (layer.owner(home), layer.mode(home)) == ((uid, gid), 0o700)

    @pytest.mark.parametrize("user", ["App", "a:b:c", "a\nroot", "9999999999", ":x", "1000:4294967295"])
    def test_what_is_no_user_is_refused(self, user):
        """No line of passwd can be smuggled in."""
        with pytest.raises(InvalidConfig):
            Layer(user=user)

    def test_databases_of_a_package_are_kept(self):
        """A package that brings its own passwd knows better."""
        trees = {FILES: {"etc": {"passwd": b"root:x:0:0::/:\napp:x:7:7::/app:\n"}}}
        layer = Layer([FILES], trees=trees, user="app")

        assert layer.target("etc/passwd") == f"{FILES}/etc/passwd"
        assert layer.text("etc/group").endswith("app:x:1000:\n")

    def test_databases_of_a_custom_file_win_over_those_of_a_package(self):
        """Custom files, then packages, then ours."""
        trees = {FILES: {"etc": {"passwd": b"", "nsswitch.conf": b"of the package"}}}
        layer = Layer([FILES], trees=trees, files=[CustomFile(path="/etc/passwd", content=b"root:x:0:0::/:\n")])

        assert layer.text("etc/passwd") == "root:x:0:0::/:\n"
        assert layer.target("etc/nsswitch.conf") == f"{FILES}/etc/nsswitch.conf"

    @pytest.mark.parametrize("user", ["app", "root:staff"])
    def test_a_user_that_the_own_database_does_not_list_is_refused(self, user):
        """An engine would refuse to start such an image; the build says so first."""
        files = [
            CustomFile(path="/etc/passwd", content=b"root:x:0:0::/:\n"),
            CustomFile(path="/etc/group", content=b"root:x:0:\n"),
        ]
        with pytest.raises(InvalidConfig, match="is not in the /etc/"):
            Layer(user=user, files=files)
        assert Layer(user="1000:1000", files=files)


class TestCertificates:
    def test_the_bundle_is_announced_and_has_both_usual_names(self):
        """OpenSSL of Nix, and programs built elsewhere, find the certificates."""
        layer = Layer([CACERT])

        assert layer.customisation.env == (
            "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt",
            "NIX_SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt",
        )
        assert layer.target("etc/ssl/certs/ca-certificates.crt") == f"{CACERT}/etc/ssl/certs/ca-bundle.crt"

    def test_the_other_name_alone_will_do(self):
        """Debian's name of the bundle counts as well."""
        path = "/etc/ssl/certs/ca-certificates.crt"
        layer = Layer(files=[CustomFile(path=path, content=b"mine")])

        assert layer.customisation.env[0] == "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt"
        assert layer.target("etc/ssl/certs/ca-bundle.crt") == path

    @pytest.mark.parametrize("trees", [{}, {CACERT: {"etc": {"ssl": {"certs": {"ca-bundle.crt": SymbolicLink("x")}}}}}])
    def test_without_a_bundle_nothing_is_announced(self, trees):
        """A variable that names no file breaks every TLS client."""
        linked = [CACERT] if trees else [HELLO]

        assert Layer(linked, trees=trees).customisation.env == ()


class TestCustomFiles:
    def test_files_links_and_directories_come_as_they_are_asked_for(self):
        """Content, target, mode and owner are the embedder's."""
        layer = Layer(
            files=[
                CustomFile(path="/srv/run.sh", content=b"#!/bin/sh\n", mode=0o750, uid=5, gid=6),
                CustomFile(path="/srv/plain", content=b""),
                CustomFile(path="/srv/link", target="plain", uid=7),
                CustomFile(path="/srv/data", mode=0o2775, gid=8),
            ]
        )

        assert (layer.mode("srv/run.sh"), layer.owner("srv/run.sh"), layer.text("srv/run.sh")) == (
            0o750,
            (5, 6),
            "#!/bin/sh\n",
        )
        assert (layer.mode("srv/plain"), layer.entries["srv/plain"].size) == (0o644, 0)
        assert (layer.target("srv/link"), layer.mode("srv/link"), layer.owner("srv/link")) == ("plain", 0o777, (7, 0))
        assert (layer.entries["srv/data"].type, layer.mode("srv/data")) == (EntryType.DIRECTORY, 0o2775)
        assert layer.mode("srv") == 0o755

    def test_a_custom_file_wins_over_a_package_without_noise(self):
        """The embedder meant it."""
        layer = Layer([HELLO], files=[CustomFile(path="/bin/hello", content=b"mine")])

        assert layer.text("bin/hello") == "mine"
        assert layer.events == []

    def test_a_custom_file_wins_over_a_directory_of_a_package(self):
        """Nothing of the package comes below the file."""
        layer = Layer([HELLO], files=[CustomFile(path="/bin", target="usr/bin")])

        assert layer.target("bin") == "usr/bin"
        assert [name for name in layer.entries if name.startswith("bin/")] == []

    def test_nothing_of_ours_comes_below_a_custom_link(self):
        """An image may keep its homes and its configuration elsewhere."""
        layer = Layer(
            user="app", files=[CustomFile(path=f"/{name}", target="/data") for name in ("home", "etc", "tmp")]
        )

        assert [name for name in layer.entries if name.startswith(("home/", "etc/", "tmp/"))] == []

    def test_a_system_directory_keeps_its_mode_unless_another_is_asked_for(self):
        """Naming /tmp does not close it."""
        assert Layer(files=[CustomFile(path="/tmp")]).mode("tmp") == 0o1777
        assert Layer(files=[CustomFile(path="/tmp", mode=0o700)]).mode("tmp") == 0o700

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([CustomFile(path="/a"), CustomFile(path="/a", content=b"")], "two custom files /a"),
            ([CustomFile(path="/a/b"), CustomFile(path="/a", content=b"")], "is below /a"),
            ([CustomFile(path="/a", target="b"), CustomFile(path="/a/b/c", content=b"")], "is below /a"),
            ([CustomFile(path="/nix", target="/x")], "the Nix store"),
            ([CustomFile(path="/a/.wh.b", content=b"")], "begins with .wh."),
            ([CustomFile(path="/" + "n" * 256)], "more than 255 bytes"),
            ([CustomFile(path="/a", target="")], "no usable target"),
            ([CustomFile(path="/a", target="x\0y")], "no usable target"),
            ([CustomFile(path="/\ud800")], "not text"),
        ],
    )
    def test_what_cannot_be_one_tree_is_refused(self, files, message):
        """Every clash between custom files is an error that names the path."""
        with pytest.raises(InvalidConfig, match=message):
            Layer(files=files)


class TestKey:
    def key(self, customisation):
        return customisation.key(archive_version=1, codec_id="gzip")

    def test_equal_inputs_have_equal_keys(self):
        """The key is a function of the input alone, and looks like a digest."""
        first, second = (Layer([HELLO, BASH], user="app").customisation for _ in range(2))

        assert self.key(first) == self.key(second)
        assert len(self.key(first)) == 64

    @pytest.mark.parametrize(
        "change",
        [
            {"name": b"b"},
            {"mode": 0o600},
            {"uid": 1},
            {"gid": 1},
            {"contents": lambda: iter((b"2",))},
            {"type": EntryType.SYMLINK, "size": 0, "contents": None, "target": b"1"},
        ],
    )
    def test_every_attribute_of_an_entry_is_in_the_key(self, change):
        """Layers that differ in anything have different keys."""
        base = Layer(files=[CustomFile(path="/a", content=b"1")]).customisation
        entries = tuple(attrs.evolve(entry, **change) if entry.name == b"a" else entry for entry in base.entries)

        assert self.key(attrs.evolve(base, entries=entries)) != self.key(base)

    def test_the_archive_format_and_the_codec_are_in_the_key(self):
        """Another encoding of equal entries is another layer."""
        base = Layer().customisation
        keys = {base.key(archive_version=version, codec_id=codec) for version in (1, 2) for codec in ("a", "b")}

        assert len(keys) == 4

    def test_a_customisation_pickles_with_its_contents(self):
        """It can go to another process to be written there."""
        base = Layer([HELLO], user="app").customisation

        assert self.key(pickle.loads(pickle.dumps(base))) == self.key(base)

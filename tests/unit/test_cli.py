"""The command nixery-core, as far as it needs no Nix."""

import contextlib
import io
import json
import signal

import pytest

from nixery_core import errors, events
from nixery_core.builder import ImageBuilder
from nixery_core.cli import main
from nixery_core.cli.arguments import parse_arguments
from nixery_core.cli.cache_argument import CacheOptions, cache_options
from nixery_core.cli.exit_codes import ExitCode, exit_code_of
from nixery_core.cli.image_arguments import image_spec
from nixery_core.cli.progress import progress
from nixery_core.cli.source_argument import parse_import_args, parse_source
from nixery_core.cli.text import bytes_text
from nixery_core.errors import InvalidConfig, NixeryError
from nixery_core.index.channel import ChannelIndex
from nixery_core.index.hydra import HydraIndex
from nixery_core.index.index_file import IndexFile
from nixery_core.model.image import ImageSpec
from nixery_core.model.platform import ARM64
from nixery_core.model.storepath import StorePath
from nixery_core.sources import GitRepository, LocalPath, NixpkgsChannel, Pin
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

BUILD = ["build", "--source", "demo", "--store", "images"]
COMMIT = "5f5210aa20e343b7e35f40c033000db0ef80d7b9"


def spec_of(*words):
    return image_spec(parse_arguments([*BUILD, *words]))


@pytest.fixture
def store(tmp_path):
    """A storage with one image, hello:latest."""

    class Source:
        def pin(self, tag):
            return Pin(kind="memory", url="memory", revision="r1", fetch={})

    package = MemoryPackage(path=StorePath("a" * 32, "hello-1"), tree={"bin": {"hello": b"hi"}})
    backend = open_backend(tmp_path / "images")
    image = ImageBuilder(Source(), backend, realiser=MemoryRealiser({"hello": package})).build(ImageSpec.parse("hello"))
    return str(tmp_path / "images"), image


class TestImageArguments:
    def test_names_are_joined(self):
        """Several words and one image name mean the same."""
        assert spec_of("git", "htop") == spec_of("git/htop")

    def test_literal_attributes_are_added(self):
        """What no image name can spell is named by -A."""
        spec = spec_of("git", "-A", "python3Packages.six")
        assert spec.packages == ("git", "python3Packages.six")
        assert spec.name == "git/python3packages.six"

    def test_the_name_can_be_chosen(self):
        """A short name for a long list of packages."""
        assert spec_of("shell/git", "--name", "team/tools").name == "team/tools"

    def test_the_platform(self):
        """A word of the name or the option chooses the platform."""
        assert spec_of("arm64/git").platform == spec_of("git", "--platform", "aarch64-linux").platform == ARM64

    def test_implied_packages_can_be_left_out(self):
        """--no-implied keeps what the words themselves bring."""
        assert spec_of("shell", "--no-implied").optional == ("moreutils", "nano")
        assert "cacert" in spec_of("shell").optional

    def test_the_run_configuration(self, tmp_path):
        """Every option of the run configuration lands where the specification has it."""
        (tmp_path / "motd").write_bytes(b"hi")
        spec = spec_of(
            *("git", "--env", "A=1", "--entrypoint", '["git", "log"]', "--cmd", "x", "--user", "app"),
            *("--workdir", "/src", "--label", "a=b=c", "--port", "80", "--volume", "/data", "--stop-signal", "SIGINT"),
            *("--created", "2024-05-31T12:00:00Z", "--file", f"{tmp_path}/motd:/etc/motd:600"),
        )
        assert spec.config.to_json() == {
            "Env": ["A=1"],
            "Entrypoint": ["git", "log"],
            "Cmd": ["x"],
            "User": "app",
            "WorkingDir": "/src",
            "Labels": {"a": "b=c"},
            "ExposedPorts": {"80": {}},
            "Volumes": {"/data": {}},
            "StopSignal": "SIGINT",
        }
        assert spec.created == "2024-05-31T12:00:00Z"
        assert (spec.files[0].path, spec.files[0].content, spec.files[0].mode) == ("/etc/motd", b"hi", 0o600)

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["Git"],
            ["git", "--tag", "a/b"],
            ["git", "--platform", "sparc"],
            ["git", "--entrypoint", "[1]"],
            ["git", "--entrypoint", "[oops"],
            ["git", "--label", "x"],
            ["git", "--file", "x"],
            ["git", "--file", "/dev/null:/x:9"],
            ["git", "--file", "/nonexistent:/x"],
            ["git", "--created", "today"],
            ["git", "--name", "Big"],
        ],
    )
    def test_bad_words_are_input_errors(self, words):
        """What is wrong with the words is said before anything starts."""
        with pytest.raises(errors.InputError):
            spec_of(*words)


class TestSources:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("channel:nixos-24.05", NixpkgsChannel("nixos-24.05")),
            (f"nixpkgs:{COMMIT}", NixpkgsChannel(COMMIT)),
            ("git:https://example.org/x", GitRepository("https://example.org/x")),
            ("git+ssh://git@example.org/x#v1", GitRepository("ssh://git@example.org/x", ref="v1")),
            ("./set", LocalPath("./set")),
            ("/set", LocalPath("/set")),
            ("path:set", LocalPath("set")),
        ],
    )
    def test_every_kind_can_be_written(self, text, expected):
        """Each source of the library has a form on the command line."""
        assert parse_source(text, {}) == expected

    @pytest.mark.parametrize("text", ["", "nixpkgs", "channel:", "ftp:x", "set"])
    def test_other_texts_are_refused(self, text):
        """There is no default source, and no guess."""
        with pytest.raises(InvalidConfig):
            parse_source(text, {})

    def test_import_args(self):
        """JSON and --allow-unfree go together."""
        assert parse_import_args('{"config": {"a": 1}}', allow_unfree=True) == {"config": {"a": 1, "allowUnfree": True}}
        for text in ("[", "[]", '{"config": 1}'):
            with pytest.raises(InvalidConfig):
                parse_import_args(text, allow_unfree=False)


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.InvalidTag("x"), 2),
            (errors.RevisionNotFound("x"), 3),
            (errors.PackageError("x"), 4),
            (errors.EvaluationError("x"), 4),
            (errors.NixBuildError("x"), 5),
            (errors.NixTimeout("x"), 6),
            (errors.StorageFull("x"), 7),
            (errors.NixNotFound("x"), 8),
            (errors.BinaryCacheError("x"), 10),
            (errors.StoreReadError("x"), 1),
        ],
    )
    def test_codes_are_fixed(self, error, code):
        """Scripts can tell the classes of failure apart, for ever by the same numbers."""
        assert exit_code_of(error) == code

    @pytest.mark.parametrize(
        ("raised", "code"),
        [(NixeryError("it broke", hint="mend it"), ExitCode.FAILED), (KeyboardInterrupt(), ExitCode.INTERRUPTED)],
    )
    def test_main_returns_them(self, monkeypatch, capsys, raised, code):
        """An error ends in its exit code and a text on stderr, never in a traceback."""

        def fail(arguments):
            raise raised

        monkeypatch.setattr("nixery_core.cli.commands.inspect", fail)
        assert main(["inspect", "--store", "x"]) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("nixery-core: ")
        assert captured.out == ""

    def test_sigterm_unwinds(self, monkeypatch, capsys):
        """SIGTERM cleans up like Ctrl-C, and has the code that shells expect; our handler goes with us."""
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr("nixery_core.cli.commands.inspect", lambda arguments: signal.raise_signal(signal.SIGTERM))
        assert main(["inspect", "--store", "x"]) == 143
        assert signal.getsignal(signal.SIGTERM) == before
        assert "terminated" in capsys.readouterr().err

    def test_usage_errors(self, capsys):
        """Argparse's own errors have the code of wrong arguments."""
        with pytest.raises(SystemExit) as caught:
            main(["build"])
        assert caught.value.code == ExitCode.USAGE
        assert "required" in capsys.readouterr().err


class TestInspect:
    def test_an_image(self, store, capsys):
        """Digest, platform and layers of a stored image are shown."""
        url, image = store
        assert main(["inspect", "hello", "--store", url]) == 0
        shown = capsys.readouterr().out
        assert str(image.descriptor.digest) in shown
        assert all(str(layer.descriptor.digest) in shown for layer in image.layers)

    @pytest.mark.parametrize("by", ["hello", "hello:latest", "digest"])
    def test_json(self, store, capsys, by):
        """Scripts get the documents themselves, by name or by digest."""
        url, image = store
        name = str(image.descriptor.digest) if by == "digest" else by
        assert main(["inspect", name, "--store", url, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["manifest"] == image.manifest.to_json()
        assert document["config"] == image.config.to_json()

    def test_all_names(self, store, capsys):
        """Without an image, all of them are listed."""
        url, image = store
        assert main(["inspect", "--store", url, "--json"]) == 0
        expected = [{"name": "hello", "tag": "latest", "digest": str(image.descriptor.digest)}]
        assert json.loads(capsys.readouterr().out) == expected

    @pytest.mark.parametrize("name", ["bye", "hello:v2", "sha256:" + "0" * 64])
    def test_what_is_not_there(self, store, capsys, name):
        """A missing image is a storage error with what to do."""
        assert main(["inspect", name, "--store", store[0]]) == ExitCode.STORAGE
        assert "no image" in capsys.readouterr().err


class TestOutput:
    @pytest.mark.parametrize(
        "words",
        [
            ["--output", "tar:x"],
            ["--output", "docker-archive:"],
            ["--output", "oci-archive:/nonexistent/x"],
            ["--output", "oci-archive:-", "--json"],
        ],
    )
    def test_bad_outputs_are_told_first(self, tmp_path, capsys, words):
        """An output that cannot work is refused before Nix is called."""
        command = ["build", "hello", "--source", "demo", "--store", str(tmp_path / "images"), *words]
        assert main(command) == ExitCode.USAGE
        assert not (tmp_path / "images").exists()


class TestProgress:
    EVENTS = (
        events.SourceResolved(source="somewhere", revision=None),
        events.NixBuildStarted(derivation="/nix/store/x-hello.drv"),
        events.NixLogLine(derivation=None, line="[red]compiling[/red]"),
        events.NixProgress(activity="build", done=1, expected=2, running=1, failed=0),
        events.ClosureResolved(paths=2, nar_size=2_000_000),
        events.LayerStarted(layer_key="k", nar_size=2_000_000),
        events.LayerProgress(layer_key="k", archived=1_000_000),
        events.LayerBuilt(layer_key="k", digest="sha256:" + "a" * 64, diff_id="sha256:" + "b" * 64, size=9),
        events.StorageRetried(operation="put", key="index.json", attempt=1, delay=0.25, reason="SlowDown"),
        events.ImageStored(digest="sha256:" + "c" * 64),
    )

    def shown(self, style, **options):
        stream = io.StringIO()
        with progress(style, verbose=options.get("verbose", False), stream=stream) as callback:
            for event in self.EVENTS:
                callback(event)
        return stream.getvalue()

    def test_plain_lines_elsewhere_than_on_a_terminal(self):
        """In a log each step is one line, without escape codes."""
        shown = self.shown("auto")
        assert shown.splitlines()[:2] == ["source: somewhere", "building /nix/store/x-hello.drv"]
        assert "\x1b" not in shown
        assert "compiling" not in shown
        assert "storage: put index.json again in 0.2 s: SlowDown" in shown

    def test_builders_are_heard_when_asked(self):
        """--verbose shows what builders print, as they print it."""
        assert "[red]compiling[/red]" in self.shown("plain", verbose=True)
        assert "[red]compiling[/red]" in self.shown("bars", verbose=True)

    def test_none_is_silent(self):
        """Nothing is nothing."""
        assert self.shown("none") == ""

    def test_bars_end_clean(self):
        """Bars follow every event without failing, whatever the order."""
        with contextlib.suppress(ImportError):
            assert "somewhere" in self.shown("bars")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1000, "1.0 kB"), (999_999, "1000.0 kB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes(count, text):
    """Sizes are decimal, as registries show them."""
    assert bytes_text(count) == text


class TestCacheSource:
    def test_the_index_is_behind_the_hash(self):
        """A cache alone, or with an index: a file, a channel, a jobset."""
        plain = parse_source("cache:https://cache.nixos.org", {})
        assert plain.index is None
        assert [cache.url for cache in plain.caches.caches] == ["https://cache.nixos.org"]
        assert [key.name for key in plain.caches.caches[0].trusted_keys] == ["cache.nixos.org-1"]
        for text, index in (
            ("./index.json.xz", IndexFile("./index.json.xz")),
            ("https://example.org/i.json", IndexFile("https://example.org/i.json")),
            ("channel:nixos-unstable", ChannelIndex("nixos-unstable")),
            ("channel:/srv/mirror/nixos-24.05", ChannelIndex("nixos-24.05", channels_url="/srv/mirror")),
            ("hydra:nixpkgs/trunk", HydraIndex("nixpkgs", "trunk")),
            ("hydra:https://h.example.org/a/b", HydraIndex("a", "b", hydra_url="https://h.example.org")),
        ):
            assert parse_source(f"cache:/srv/cache#{text}", {}).index == index

    def test_options_reach_every_cache(self):
        """Further caches, keys and --allow-unsigned hold for all caches of the source."""
        words = [*BUILD[:1], "git", "--source", "cache:/a", "--store", "x", "--cache", "/b", "--allow-unsigned"]
        arguments = parse_arguments([*words, "--trusted-key", "cache.nixos.org-1"])
        source = parse_source(arguments.source, {}, cache_options(arguments))
        assert [(cache.url, cache.allow_unsigned) for cache in source.caches.caches] == [("/a", True), ("/b", True)]

    @pytest.mark.parametrize(
        ("text", "import_args", "options"),
        [
            ("cache:", {}, CacheOptions()),
            ("cache:/a#hydra:x", {}, CacheOptions()),
            ("cache:/a#channel:", {}, CacheOptions()),
            ("cache:/a", {}, CacheOptions(trusted_keys=("nonsense",))),
            ("cache:/a", {"config": {"allowUnfree": True}}, CacheOptions()),
            ("demo", {}, CacheOptions(allow_unsigned=True)),
            ("channel:nixos-24.05", {}, CacheOptions(more=("/b",))),
        ],
    )
    def test_what_does_not_fit_is_refused(self, text, import_args, options):
        """A source that is malformed, or options that mean nothing to it."""
        with pytest.raises(InvalidConfig):
            parse_source(text, import_args, options)

    def test_an_index_is_made_by_nix(self, tmp_path, capsys):
        """A cache is no package set."""
        words = ["index", "--source", "cache:/a", "--output", str(tmp_path / "i.json")]
        assert main(words) == ExitCode.USAGE
        assert "with Nix" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("words", [["--output", "/nowhere/at/all/i.json"], ["--output", "-", "--json"]])
    def test_an_index_that_cannot_be_written(self, words, capsys):
        """What cannot be written is told before anything is evaluated."""
        assert main(["index", "--source", "demo", *words]) == ExitCode.USAGE

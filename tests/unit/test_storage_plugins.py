"""From URLs to backends."""

import sys
import textwrap
from pathlib import Path

import pytest

from nixery_core.errors import InvalidConfig, StorageError, UnknownScheme
from nixery_core.storage.backend import BackendRef
from nixery_core.storage.fsspec_backend import FsspecBackend
from nixery_core.storage.local import LocalBackend
from nixery_core.storage.plugins import open_backend


class TestDirectories:
    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A path is a directory, a relative one from the current directory."""
        monkeypatch.chdir(tmp_path)
        for url in (tmp_path / "x", str(tmp_path / "x"), "x", "./x", Path("x"), "y/../x"):
            backend = open_backend(url)
            assert isinstance(backend, LocalBackend)
            assert backend.root == tmp_path / "x"

    def test_relative_path_stays_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that changes its directory does not change its storage."""
        monkeypatch.chdir(tmp_path)
        backend = open_backend("x")
        monkeypatch.chdir("/")
        backend.create("index.json", b"{}")
        assert (tmp_path / "x" / "index.json").read_bytes() == b"{}"

    @pytest.mark.parametrize(
        "name", ["plain", "with space", "a%20b", "ü", "a#b?c", "a:b", "\udcff", "~", "$HOME", "s3"]
    )
    def test_any_name_makes_a_round_trip(self, tmp_path: Path, name: str) -> None:
        """The URL of a directory finds the same directory, whatever its name."""
        backend = open_backend(tmp_path / name)
        again = open_backend(backend.ref.url)
        assert isinstance(again, LocalBackend)
        assert again.root == tmp_path / name
        assert backend.ref.url.isascii()

    def test_file_urls(self) -> None:
        """A file URL has an empty host or localhost."""
        for url in ("file:///srv/images", "file://localhost/srv/images", "FILE:///srv/images", "file:///srv/images/"):
            backend = open_backend(url)
            assert isinstance(backend, LocalBackend)
            assert backend.root == Path("/srv/images")

    @pytest.mark.parametrize(
        "url", ["file://srv/images", "file://", "file:///a?b", "file:///a#b", "file:/srv", "file://[x/y"]
    )
    def test_malformed_file_urls(self, url: str) -> None:
        """A file URL that means another place than it seems to is refused."""
        with pytest.raises(InvalidConfig) as raised:
            open_backend(url)
        assert url in raised.value.message

    @pytest.mark.parametrize("url", ["", "a\0b"])
    def test_no_path(self, url: str) -> None:
        """Neither nothing nor a zero byte is a path."""
        with pytest.raises(InvalidConfig):
            open_backend(url)

    def test_options(self, tmp_path: Path) -> None:
        """A directory takes no options; a misspelt one is not ignored."""
        with pytest.raises(InvalidConfig, match="endpoint_url"):
            open_backend(tmp_path, endpoint_url="x")

    def test_nothing_is_created_before_the_first_write(self, tmp_path: Path) -> None:
        """Looking does not make directories."""
        backend = open_backend(tmp_path / "a" / "b")
        assert backend.stat("index.json") is None
        assert list(backend.list("")) == []
        backend.delete("index.json")
        backend.open_blob().cancel()
        assert list(tmp_path.iterdir()) == []


class TestMemory:
    def test_one_memory(self) -> None:
        """Everyone in a process who names one memory gets the same."""
        first, second = open_backend("memory://one-memory"), open_backend("memory://one-memory/")
        assert isinstance(first, FsspecBackend)
        first.create("index.json", b"{}")
        assert second.get("index.json") == b"{}"
        assert open_backend("memory://other-memory").stat("index.json") is None

    def test_options(self) -> None:
        """Memory takes no options; a misspelt one is not ignored."""
        with pytest.raises(InvalidConfig, match="global_store"):
            open_backend("memory://x", global_store=False)


class TestUnknown:
    @pytest.mark.parametrize(
        ("url", "hint"),
        [
            ("s3://bucket/x", "pip install nixery-backend-s3"),
            ("s3a://bucket/x", "pip install nixery-backend-s3"),
            ("gs://bucket/x", "pip install nixery-backend-gcs"),
            ("gcs://bucket/x", "pip install nixery-backend-gcs"),
            ("S3://bucket/x", "pip install nixery-backend-s3"),
            ("adl://x/y", "adlfs"),
        ],
    )
    def test_package_to_install_is_named(self, url: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A scheme whose package is not installed says what to install."""
        for module in ("s3fs", "gcsfs", "adlfs", "nixery_backend_s3", "nixery_backend_gcs"):
            monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr("nixery_core.storage.plugins._plugin", lambda scheme: None)
        with pytest.raises(UnknownScheme) as raised:
            open_backend(url)
        assert hint in raised.value.hint

    @pytest.mark.parametrize(
        ("url", "near"), [("s3c://b", "s3://"), ("fiel:///x", "file://"), ("memroy://", "memory://")]
    )
    def test_typos(self, url: str, near: str) -> None:
        """A misspelt scheme is recognised."""
        with pytest.raises(UnknownScheme) as raised:
            open_backend(url)
        assert near in raised.value.hint

    def test_nothing_near(self) -> None:
        """A scheme that looks like none says what else there is."""
        with pytest.raises(UnknownScheme) as raised:
            open_backend("qqqqqqqq://x")
        assert raised.value.hint

    @pytest.mark.parametrize("url", ["s3:/bucket", "memory:x", "file:x"])
    def test_missing_slashes(self, url: str) -> None:
        """A URL with too few slashes is not taken for a path."""
        with pytest.raises(InvalidConfig, match="neither a URL nor a path"):
            open_backend(url)

    def test_missing_options_are_named(self) -> None:
        """A file system that needs more than its URL says what."""
        with pytest.raises(InvalidConfig, match=r"reference://x does not take these options.*fo"):
            open_backend("reference://x")

    def test_secrets_are_masked(self) -> None:
        """An error never shows the password of a URL."""
        with pytest.raises(UnknownScheme) as raised:
            open_backend("qqqq://me:hunter2@host/x?token=hunter2")
        assert "hunter2" not in str(raised.value)
        assert "hunter2" not in repr(BackendRef("s3://me:hunter2@host", {"secret": "hunter2"}))


class TestPlugins:
    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """A function that installs a distribution with a backend."""
        monkeypatch.syspath_prepend(tmp_path)

        def install(distribution: str, scheme: str, value: str, code: str = "") -> None:
            info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[nixery_core.backends]\n{scheme} = {value}\n")
            module = value.partition(":")[0]
            if code:
                (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))

        yield install
        for name in [name for name in sys.modules if name.startswith("plugin_for_test")]:
            del sys.modules[name]

    def test_installed_backend_is_found(self, install) -> None:
        """A distribution adds a scheme by its entry point; the URL and the options reach it."""
        install(
            "plugin-one",
            "one",
            "plugin_for_test_one:open_backend",
            """
            def open_backend(url, **options):
                return ("opened", url, options)
            """,
        )
        assert open_backend("one://x/y", key="k") == ("opened", "one://x/y", {"key": "k"})

    def test_plugin_goes_before_fsspec(self, install) -> None:
        """A backend made for a scheme is better than fsspec's file system for it."""
        install("plugin-ftp", "ftp", "plugin_for_test_ftp:make", "def make(url, **options): return url")
        assert open_backend("ftp://x") == "ftp://x"

    def test_plugin_is_not_imported_before_it_is_needed(self, install) -> None:
        """Installed backends cost nothing until they are used."""
        install("plugin-lazy", "lazy", "plugin_for_test_lazy:make", "raise RuntimeError('imported')")
        open_backend("memory://x")
        assert "plugin_for_test_lazy" not in sys.modules

    def test_two_plugins_for_one_scheme(self, install) -> None:
        """Which of two backends is used is never left to chance."""
        install("plugin-a", "twice", "plugin_for_test_a:make", "def make(url): ...")
        install("plugin-b", "twice", "plugin_for_test_b:make", "def make(url): ...")
        with pytest.raises(StorageError, match="plugin-a and plugin-b"):
            open_backend("twice://x")

    def test_broken_plugin(self, install) -> None:
        """A backend that cannot be imported is named, with its distribution."""
        install("plugin-broken", "broken", "plugin_for_test_broken:make", "import no_such_module_at_all")
        with pytest.raises(StorageError, match=r"plugin-broken.*no_such_module_at_all"):
            open_backend("broken://x")

    def test_typo_of_a_plugin(self, install) -> None:
        """Installed schemes are among the near matches."""
        install("plugin-exotic", "exotic", "plugin_for_test_exotic:make", "def make(url): ...")
        with pytest.raises(UnknownScheme) as raised:
            open_backend("exotik://x")
        assert "exotic://" in raised.value.hint

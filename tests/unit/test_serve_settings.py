"""The settings of `nixery-core serve`: environment, options, and what is refused before anything starts."""

import re
from pathlib import Path

import attrs
import pytest

from nixery_core.cli.arguments import parse_arguments
from nixery_core.cli.serve import settings_of
from nixery_core.cli.serve.chosen import SOURCE_VARIABLES, STORAGE_VARIABLES
from nixery_core.cli.serve.settings import KEY, ServeSettings, settings_table
from nixery_core.errors import InvalidConfig

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
ENOUGH = {"NIXERY_CHANNEL": "nixos-unstable", "STORAGE_PATH": "/srv"}


def settings(environment, **given):
    return ServeSettings.from_environment(environment, given)


class TestSource:
    @pytest.mark.parametrize(
        ("environment", "source"),
        [
            ({"NIXERY_CHANNEL": "nixos-24.05"}, "channel:nixos-24.05"),
            ({"NIXERY_PKGS_REPO": "git@example.org:set.git"}, "git:git@example.org:set.git"),
            ({"NIXERY_PKGS_PATH": "/srv/set"}, "path:/srv/set"),
            ({"NIXERY_SOURCE": "demo"}, "demo"),
        ],
    )
    def test_nixerys_variables_name_the_source(self, environment, source):
        """Each of Nixery's variables means what it means to Nixery."""
        assert settings({**environment, "NIXERY_STORE": "x"}).source == source

    def test_none_is_refused(self):
        """Without a source nothing starts, and the refusal names what to set."""
        with pytest.raises(InvalidConfig, match=r"no package source is set.*NIXERY_CHANNEL"):
            settings({"NIXERY_STORE": "x"})
        with pytest.raises(InvalidConfig, match="no package source is set"):
            settings({"NIXERY_STORE": "x", "NIXERY_CHANNEL": " "})

    def test_two_are_refused(self):
        """Nixery takes the first of two; here they contradict each other."""
        with pytest.raises(InvalidConfig, match="NIXERY_CHANNEL and NIXERY_PKGS_PATH each name a package source"):
            settings({**ENOUGH, "NIXERY_PKGS_PATH": "/srv"})

    def test_an_option_wins(self):
        """What the command line names is the source, whatever the environment says."""
        environment = {**ENOUGH, "NIXERY_PKGS_PATH": "/srv"}
        assert settings(environment, source="demo").source == "demo"


class TestStorage:
    @pytest.mark.parametrize(
        ("environment", "store"),
        [
            ({"NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": "/srv/images"}, "/srv/images"),
            ({"NIXERY_STORAGE_BACKEND": "gcs", "GCS_BUCKET": "images"}, "gs://images"),
            ({"NIXERY_STORAGE_BACKEND": "s3", "S3_BUCKET": "images/prefix"}, "s3://images/prefix"),
            ({"NIXERY_STORAGE_BACKEND": "url", "NIXERY_STORE": "memory://x"}, "memory://x"),
            ({"NIXERY_STORAGE_BACKEND": "gcs", "GCS_BUCKET": "images", "STORAGE_PATH": "/srv"}, "gs://images"),
            ({"STORAGE_PATH": "/srv/images"}, "/srv/images"),
            ({"GCS_BUCKET": "images"}, "gs://images"),
        ],
    )
    def test_the_environment_names_the_storage(self, environment, store):
        """The backend says which variable counts; where one alone is set, it needs no backend."""
        assert settings({**environment, "NIXERY_SOURCE": "demo"}).store == store

    @pytest.mark.parametrize(
        ("environment", "problem"),
        [
            ({}, "no storage is set.*STORAGE_PATH"),
            ({"NIXERY_STORAGE_BACKEND": "filesystem"}, "STORAGE_PATH is not set"),
            ({"NIXERY_STORAGE_BACKEND": "gsc", "GCS_BUCKET": "x"}, "did you mean gcs"),
            ({"GCS_BUCKET": "x", "STORAGE_PATH": "/srv"}, "STORAGE_PATH and GCS_BUCKET each name a storage"),
            (
                {"NIXERY_STORE": "s3://x", "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": "/srv"},
                "NIXERY_STORE and NIXERY_STORAGE_BACKEND=filesystem each name a storage",
            ),
        ],
    )
    def test_none_and_two_are_refused(self, environment, problem):
        """Nothing is guessed where the environment names no storage, half of one, or two."""
        with pytest.raises(InvalidConfig, match=problem):
            settings({**environment, "NIXERY_SOURCE": "demo"})


class TestValues:
    def test_nixerys_other_variables(self):
        """PORT, NIX_TIMEOUT and NIX_POPULARITY_URL are read."""
        found = settings({**ENOUGH, "PORT": "80", "NIX_TIMEOUT": "60", "NIX_POPULARITY_URL": "https://example.org/p"})
        assert (found.port, found.nix_timeout, found.popularity) == (80, 60.0, "https://example.org/p")

    def test_lists_and_truths(self):
        """Lists are split at spaces and commas; truths are words."""
        found = settings({**ENOUGH, "NIXERY_WARM_UP": "shell/git, htop", "NIXERY_PAGE": "off"})
        assert found.warm_up == ("shell/git", "htop")
        assert found.page is False

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("PORT", "http"),
            ("PORT", "65536"),
            ("NIXERY_WORKERS", "0"),
            ("NIX_TIMEOUT", "soon"),
            ("NIX_TIMEOUT", "nan"),
            ("NIXERY_PAGE", "perhaps"),
            ("NIXERY_LOG_FORMAT", "xml"),
            ("NIXERY_NIX_OPTIONS", "[]"),
            ("NIXERY_PUBLIC_URL", "images.example.org"),
            ("NIXERY_TLS_CERT", "cert.pem"),
        ],
    )
    def test_nonsense_is_refused(self, variable, value):
        """A value that makes no sense is an error that names its variable, before anything starts."""
        with pytest.raises(InvalidConfig, match=f"{variable}|--tls-cert"):
            settings({**ENOUGH, variable: value})

    def test_options_win_over_the_environment(self, monkeypatch):
        """An option is worth more than its variable, and leaves the others as they are."""
        monkeypatch.setenv("PORT", "1")
        monkeypatch.setenv("NIXERY_HOST", "127.0.0.2")
        arguments = ["serve", "--source", "demo", "--store", "x", "--port", "2", "--nix-option", "cores", "1"]
        found = settings_of(parse_arguments([*arguments, "--warm-up", "git", "--warm-up", "htop", "--no-page"]))
        assert (found.port, found.host, found.warm_up, found.page) == (2, "127.0.0.2", ("git", "htop"), False)
        assert found.nix_options == {"cores": "1"}

    def test_every_setting_has_an_option(self):
        """Each field is set by the option that its table names."""
        for field in attrs.fields(ServeSettings):
            flag = field.metadata[KEY].flag
            values = {"NAME VALUE": ["a", "b"], "": []}.get(field.metadata[KEY].metavar, ["1"])
            parsed = parse_arguments(["serve", flag, *values])
            assert getattr(parsed, field.name) is not None, flag


@pytest.mark.skipif(not PAGE.exists(), reason="runs in a checkout only")
def test_the_reference_has_every_setting():
    """The table of the reference has each variable, option and default of the code, in its order, and no other."""
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| `(--[a-z-]+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    expected = [(setting.variable, setting.flag, shown(value), setting.text) for setting, value in settings_table()]
    assert rows == expected


@pytest.mark.skipif(not PAGE.exists(), reason="runs in a checkout only")
def test_the_guides_name_settings_that_there_are():
    """Each variable and option of the registry in the guides is one of the code."""
    known = {setting.variable for setting, _ in settings_table()} | {*SOURCE_VARIABLES, *STORAGE_VARIABLES}
    flags = {setting.flag for setting, _ in settings_table()}
    guides = ("run-a-registry", "systemd", "kubernetes", "replicas", "registry-image")
    for guide in guides:
        text = (PAGE.parents[1] / "howto" / f"{guide}.md").read_text()
        assert set(re.findall(r"\bNIXERY_[A-Z_]+\b", text)) <= known, guide
        for line in re.findall(r"nixery-core serve (.*)", text):
            assert set(re.findall(r"--[a-z-]+", line)) <= flags, line


def shown(value):
    if value is True or value is False:
        return f"`{str(value).lower()}`"
    if value in ("", (), {}):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"

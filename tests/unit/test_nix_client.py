"""How Nix is called is plain data."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from nixery_core._nixfiles import expressions_hash, nix_file
from nixery_core.errors import InvalidConfig, NixError, NixNotFound
from nixery_core.nix import Nix


def test_pickles_and_compares() -> None:
    """A Nix goes to another process and is the same there."""
    nix = Nix(store="/x y", options={"max-jobs": "2"}, environment={"A": "b"}, binaries=Path("/opt/nix/bin"))
    assert pickle.loads(pickle.dumps(nix)) == nix


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (None, "/nix/store"),
        ("daemon", "/nix/store"),
        ("auto", "/nix/store"),
        ("unix:///run/nix.sock", "/nix/store"),
        ("/srv/root", "/srv/root/nix/store"),
        ("local?root=/srv/root", "/srv/root/nix/store"),
        ("local?store=/nix/store&real=/srv/elsewhere", "/srv/elsewhere"),
    ],
)
def test_knows_where_the_content_of_a_store_is(
    store: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to name a local store leads to the folder that holds its paths."""
    monkeypatch.delenv("NIX_REMOTE", raising=False)
    assert Nix(store=store)._store_dir() == expected


def test_a_store_elsewhere_cannot_be_read() -> None:
    """A store on another machine is refused, with its credentials masked."""
    with pytest.raises(NixError, match=r"ssh://\*\*\*@builder") as caught:
        Nix(store="ssh://me:secret@builder").realise([])
    assert "secret" not in str(caught.value)


def test_the_environment_may_name_the_store(tmp_path: Path) -> None:
    """NIX_REMOTE counts where no store is given."""
    assert Nix(environment={"NIX_REMOTE": str(tmp_path)})._store_dir() == f"{tmp_path}/nix/store"


@pytest.mark.parametrize("changes", [{"timeout": 0}, {"max_silent": -1}, {"options": {"max-jobs": 2}}])
def test_refuses_what_cannot_be_meant(changes: dict[str, object]) -> None:
    """Wrong settings are refused before anything is called."""
    with pytest.raises(InvalidConfig):
        Nix(**changes)  # type: ignore[arg-type]


def test_secrets_of_the_environment_are_not_shown() -> None:
    """The environment, which may hold tokens, is not part of the representation."""
    assert "hunter2" not in repr(Nix(environment={"NIX_CONFIG": "access-tokens = github.com=hunter2"}))


def test_without_nix_the_error_tells_how_to_install_it(tmp_path: Path) -> None:
    """A missing Nix raises NixNotFound with the next step."""
    with pytest.raises(NixNotFound, match="cannot be started") as caught:
        Nix(binaries=tmp_path).version()
    assert "nixos.org" in caught.value.diagnostics()


def test_another_program_of_that_name_is_not_nix(tmp_path: Path) -> None:
    """A program that does not answer as Nix does is not taken for it."""
    (tmp_path / "nix").write_text("#!/bin/sh\necho fantasy 1.0\n")
    (tmp_path / "nix").chmod(0o755)
    with pytest.raises(NixNotFound, match="is not Nix"):
        Nix(binaries=tmp_path).version()


def test_the_identity_follows_the_expressions() -> None:
    """The id that enters cache keys holds the hash of the expressions, which are there to be read."""
    assert expressions_hash() in Nix().id
    assert nix_file("load.nix").is_file()


def test_a_missing_expression_is_named() -> None:
    """An expression that is not installed is an error that names it."""
    with pytest.raises(NixError, match=r"absent\.nix"):
        nix_file("absent.nix")

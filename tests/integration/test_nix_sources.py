"""Package sets come from git repositories and archives, through a real Nix and a real git."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from nixery_core.errors import NixeryError, RevisionNotFound, SourceError
from nixery_core.model.platform import AMD64
from nixery_core.nix import Nix
from nixery_core.sources import GitRepository, Pin

SET = """{ system, config ? { } }: {
  NAME = derivation { name = "NAME"; inherit system; builder = "/bin/sh"; args = [ "-c" ": > $out" ]; };
}
"""


class Repository:
    """A bare git repository whose every commit has a package of its own."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.bare = folder / "set.git"
        self.commits: dict[str, str] = {}
        self.git("init", "--quiet", "--initial-branch=trunk", str(self.work), cwd=folder)
        self.commit("first")
        self.git("tag", "-a", "v1", "-m", "v1")
        self.commit("second")
        self.git("checkout", "--quiet", "-b", "side/branch")
        self.commit("aside")
        self.git("checkout", "--quiet", "trunk")
        self.git("clone", "--quiet", "--bare", str(self.work), str(self.bare), cwd=folder)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {
            f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        result = subprocess.run(
            command, cwd=cwd or self.work, env=environment, check=True, capture_output=True, text=True
        )
        return result.stdout.strip()

    def commit(self, name: str) -> None:
        (self.work / "default.nix").write_text(SET.replace("NAME", name))
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", name)
        self.commits[name] = self.git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., None]) -> Repository:
    require("git")
    return Repository(tmp_path_factory.mktemp("git repository"))


@pytest.fixture
def fresh(nix: Nix, tmp_path: Path) -> Nix:
    """The Nix of the session without anything that it fetched before."""
    return attrs.evolve(nix, environment={**nix.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")})


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server on this machine, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("web")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def attributes(nix: Nix, pin: Pin, *names: str) -> list[str]:
    return [package.attribute for package in nix.evaluate(pin, names, [], AMD64)]


def failure(nix: Nix, pin: Pin) -> NixeryError:
    with pytest.raises(SourceError) as caught:
        nix.evaluate(pin, ["first"], [], AMD64)
    return caught.value


class TestGit:
    @pytest.mark.parametrize(("tag", "name"), [("trunk", "second"), ("latest", "second"), ("v1", "first")])
    def test_branches_and_tags(self, fresh: Nix, repository: Repository, tag: str, name: str) -> None:
        """A branch, the default branch and an annotated tag each give the set at their commit."""
        pin = GitRepository(repository.bare.as_uri()).pin(tag)
        assert pin.revision == repository.commits[name]
        assert attributes(fresh, pin, name) == [name]

    @pytest.mark.parametrize("name", ["first", "second", "aside"])
    def test_commits_on_and_off_the_default_branch(self, fresh: Nix, repository: Repository, name: str) -> None:
        """A full commit is found wherever it is, also off the default branch."""
        pin = GitRepository(repository.bare.as_uri()).pin(repository.commits[name])
        assert attributes(fresh, pin, name) == [name]

    def test_a_branch_with_a_slash(self, fresh: Nix, repository: Repository) -> None:
        """A branch whose name is no image tag is named by the source."""
        pin = GitRepository(repository.bare.as_uri(), ref="side/branch").pin("latest")
        assert attributes(fresh, pin, "aside") == ["aside"]

    def test_a_plain_path_with_spaces(self, fresh: Nix, repository: Repository) -> None:
        """A repository may be named by its folder."""
        pin = GitRepository(str(repository.bare)).pin("trunk")
        assert attributes(fresh, pin, "second") == ["second"]

    def test_a_commit_that_is_not_there(self, fresh: Nix, repository: Repository) -> None:
        """A commit that the repository does not have is RevisionNotFound and names it."""
        pin = GitRepository(repository.bare.as_uri()).pin("1" * 40)
        error = failure(fresh, pin)
        assert isinstance(error, RevisionNotFound)
        assert "1" * 40 in error.message

    def test_a_commit_that_is_not_on_its_branch(self, fresh: Nix, repository: Repository) -> None:
        """A branch whose resolved commit is gone, as after a forced push, is RevisionNotFound."""
        pin = GitRepository(repository.bare.as_uri()).pin("trunk")
        error = failure(fresh, attrs.evolve(pin, revision="4" * 40, fetch={**pin.fetch, "rev": "4" * 40}))
        assert isinstance(error, RevisionNotFound)
        assert "4" * 40 in error.message

    def test_a_repository_that_is_not_there(self, fresh: Nix, tmp_path: Path) -> None:
        """A repository that cannot be read is a SourceError with git's reason."""
        url = (tmp_path / "absent.git").as_uri()
        pin = Pin(kind="git", url=url, revision="1" * 40, fetch={"type": "git", "url": url, "rev": "1" * 40})
        error = failure(fresh, pin)
        assert not isinstance(error, RevisionNotFound)
        assert "absent.git" in error.message

    def test_a_server_that_refuses(self, fresh: Nix) -> None:
        """Credentials of a repository that cannot be reached stay out of the error and of the events."""
        url = "http://me:hunter2@127.0.0.1:9/set.git?token=hunter3"
        pin = Pin(kind="git", url=url, revision="1" * 40, fetch={"type": "git", "url": url, "rev": "1" * 40})
        events: list[object] = []
        with pytest.raises(SourceError) as caught:
            fresh.evaluate(pin, ["x"], [], AMD64, on_event=events.append)
        told = caught.value.diagnostics() + repr(caught.value) + repr(events)
        assert "hunter" not in told
        assert "127.0.0.1:9" in told


class TestTarball:
    def archive(self, web: tuple[str, Path], name: str, stamp: str | None = None) -> str:
        address, folder = web
        content = folder / f"{name}-content"
        content.mkdir()
        (content / "default.nix").write_text(SET.replace("NAME", name))
        if stamp is not None:
            (content / ".git-revision").write_text(stamp)
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(content, arcname="set-main")
        return f"{address}/{name}.tar.gz"

    def pin(self, url: str, revision: str = "2" * 40) -> Pin:
        return Pin(kind="nixpkgs", url=url, revision=revision, fetch={"type": "tarball", "url": url})

    def test_an_archive_on_the_web(self, fresh: Nix, web: tuple[str, Path]) -> None:
        """The archive of a commit is fetched and evaluated."""
        assert attributes(fresh, self.pin(self.archive(web, "plain")), "plain") == ["plain"]

    def test_an_archive_of_the_right_commit(self, fresh: Nix, web: tuple[str, Path]) -> None:
        """An archive that tells its own commit is believed when that is the expected one."""
        url = self.archive(web, "stamped", "2" * 40 + "\n")
        assert attributes(fresh, self.pin(url), "stamped") == ["stamped"]

    def test_an_archive_of_another_commit(self, fresh: Nix, web: tuple[str, Path]) -> None:
        """An archive that holds another commit than expected is refused, with both commits named."""
        error = failure(fresh, self.pin(self.archive(web, "other", "3" * 40)))
        assert "3" * 40 in error.message
        assert "2" * 40 in error.message

    def test_an_archive_that_is_not_there(self, fresh: Nix, web: tuple[str, Path]) -> None:
        """A missing archive is a SourceError that names the address and the answer."""
        error = failure(fresh, self.pin(f"{web[0]}/absent.tar.gz"))
        assert "absent.tar.gz" in error.message
        assert "404" in error.message

    def test_what_is_no_archive(self, fresh: Nix, web: tuple[str, Path]) -> None:
        """A file that is no archive is a SourceError."""
        (web[1] / "text.tar.gz").write_text("no archive at all")
        assert "text.tar.gz" in failure(fresh, self.pin(f"{web[0]}/text.tar.gz")).message

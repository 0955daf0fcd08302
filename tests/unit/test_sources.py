"""Package sources: from a tag to a pin, with real git and a real web server."""

import contextlib
import http.server
import pickle
import shutil
import subprocess
import threading

import attrs
import pytest

from nixery_core.errors import InvalidConfig, InvalidTag, RevisionNotFound, SourceError
from nixery_core.sources import CacheKey, GitRepository, LocalPath, NixpkgsChannel, Pin

COMMIT = "5f5210aa20e343b7e35f40c033000db0ef80d7b9"


@pytest.fixture
def repository(tmp_path):
    """A repository with branches, tags, and a name that is both."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "set"
    folder.mkdir()

    def git(*arguments):
        settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        command = ["git", "-C", folder, *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (folder / "default.nix").write_text("{ }")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "annotated")
    git("tag", "both")
    git("branch", "feature/x")
    git("commit", "--allow-empty", "-m", "two")
    git("branch", "both")
    git.folder = str(folder)
    return git


@pytest.fixture
def channels():
    """A web server in the place of the channels: path -> (status, body); counts requests."""
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answers, asked
        finally:
            server.shutdown()
            thread.join()


class TestGitRepository:
    def test_latest_is_the_default_branch(self, repository):
        """`latest` means the remote's HEAD, with the branch that it names."""
        pin = GitRepository(repository.folder).pin("latest")
        assert pin.revision == repository("rev-parse", "main")
        assert pin.fetch["ref"] == "refs/heads/main"

    def test_branches_and_tags_are_resolved_to_commits(self, repository):
        """A branch or tag is pinned to its commit; of an annotated tag, what it points to."""
        source = GitRepository(repository.folder)
        assert source.pin("main").revision == repository("rev-parse", "main")
        assert source.pin("v1").revision == repository("rev-parse", "v1^{commit}")
        assert source.pin("v1").fetch["ref"] == "refs/tags/v1"

    def test_a_commit_is_taken_as_it_is(self, repository):
        """A full commit asks nobody, and need not be on any branch that we know."""
        pin = GitRepository("https://git.example.invalid/set").pin(COMMIT)
        assert pin.revision == COMMIT
        assert "ref" not in pin.fetch

    def test_refs_with_slashes_are_named_in_the_source(self, repository):
        """What no image tag can spell, the source can."""
        for ref in ("feature/x", "refs/heads/feature/x"):
            pin = GitRepository(repository.folder, ref=ref).pin("latest")
            assert pin.revision == repository("rev-parse", "feature/x")

    def test_a_missing_ref_has_near_matches(self, repository):
        """A typing error is answered with what was meant."""
        with pytest.raises(RevisionNotFound, match="no branch or tag 'mian'") as caught:
            GitRepository(repository.folder).pin("mian")
        assert "main" in caught.value.hint

    def test_a_branch_and_a_tag_of_one_name_are_not_guessed(self, repository):
        """Where a name is a branch and a tag at different commits, the caller decides."""
        with pytest.raises(RevisionNotFound, match="branch and a tag"):
            GitRepository(repository.folder).pin("both")
        pin = GitRepository(repository.folder, ref="refs/tags/both").pin("latest")
        assert pin.revision == repository("rev-parse", "v1^{commit}")

    def test_a_resolution_is_believed_for_its_time(self, repository):
        """Within the TTL a branch stays at its commit; without one it is asked for again."""
        believing, asking = GitRepository(repository.folder), GitRepository(repository.folder, ttl=0)
        before = believing.pin("main").revision
        asking.pin("main")
        repository("commit", "--allow-empty", "-m", "three")
        assert believing.pin("main").revision == before
        assert asking.pin("main").revision == repository("rev-parse", "main") != before

    def test_an_unreadable_repository_is_a_source_error(self, tmp_path):
        """Git's own words reach the caller, with the repository."""
        with pytest.raises(SourceError, match="nowhere"):
            GitRepository(str(tmp_path / "nowhere")).pin("main")

    @pytest.mark.parametrize("url", ["", "--upload-pack=id", "ext::sh -c id", "fd::3", "a\0b"])
    def test_urls_that_run_programs_are_refused(self, url):
        """No URL is an option or a command to git."""
        with pytest.raises(InvalidConfig):
            GitRepository(url)

    @pytest.mark.parametrize("ref", ["", "-x", "a b", "a..b~1", "a:b", "a*"])
    def test_refs_that_are_no_refs_are_refused(self, ref):
        """A ref is a name, never an expression or an option."""
        with pytest.raises(InvalidConfig):
            GitRepository("https://example.org/x", ref=ref)

    def test_secrets_of_the_url_are_not_shown(self, repository):
        """A token in the URL is in no representation and no description."""
        source = GitRepository("https://me:hunter2@git.example.invalid/set")
        assert "hunter2" not in repr(source)
        assert "hunter2" not in source.pin(COMMIT).describe()

    def test_pickles(self, repository):
        """A source travels to other processes, without what it remembers."""
        source = GitRepository(repository.folder)
        source.pin("main")
        assert pickle.loads(pickle.dumps(source)) == source


class TestNixpkgsChannel:
    def test_a_channel_is_resolved_to_its_commit(self, channels):
        """The pin names the commit, and Nix gets the archive of that commit."""
        url, answers, asked = channels
        answers["/nixos-test/git-revision"] = (200, COMMIT.encode() + b"\n")
        source = NixpkgsChannel("nixos-test", channels_url=url, archive_url=url + "/{revision}.tar.gz")
        pin = source.pin("latest")
        assert pin.revision == COMMIT
        assert pin.fetch == {"type": "tarball", "url": f"{url}/{COMMIT}.tar.gz"}
        assert source.pin("nixos-test") == pin
        assert asked == ["/nixos-test/git-revision"]

    def test_a_commit_asks_nobody(self):
        """Nixpkgs at a full commit needs no channel."""
        assert NixpkgsChannel(COMMIT).pin("latest").revision == COMMIT

    def test_other_tags_are_refused(self):
        """A channel has no tags, so `hello:22.05` is no silent `hello:latest`."""
        with pytest.raises(InvalidTag, match=r"has no tag '22.05'"):
            NixpkgsChannel("nixos-unstable").pin("22.05")

    def test_an_unknown_channel_is_told(self, channels):
        """A 404 is a missing channel, not a broken network."""
        with pytest.raises(RevisionNotFound, match=r"no channel nixos-99\.99"):
            NixpkgsChannel("nixos-99.99", channels_url=channels[0]).pin("latest")

    @pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>"), (200, b"\xff\xfe")])
    def test_other_answers_are_source_errors(self, channels, answer):
        """What is no commit is never taken for one."""
        url, answers, _ = channels
        answers["/nixos-test/git-revision"] = answer
        with pytest.raises(SourceError):
            NixpkgsChannel("nixos-test", channels_url=url).pin("latest")

    def test_a_dead_server_is_a_source_error(self):
        """A refused connection names the address and what to do."""
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:1/"):
            NixpkgsChannel("nixos-test", channels_url="http://127.0.0.1:1").pin("latest")

    @pytest.mark.parametrize("channel", ["", "../x", "A", "a/b", "a b"])
    def test_names_that_are_no_channels_are_refused(self, channel):
        """A channel is one lower-case component of a URL."""
        with pytest.raises(InvalidConfig):
            NixpkgsChannel(channel)

    def test_an_archive_url_needs_its_place_holder(self):
        """Without the commit in it, every revision would be the same archive."""
        with pytest.raises(InvalidConfig, match="revision"):
            NixpkgsChannel("nixos-test", archive_url="https://example.org/x.tar.gz")


class TestLocalPath:
    def test_a_folder_moves(self, tmp_path):
        """A folder may change at any time, so its images have no cache key."""
        (tmp_path / "default.nix").write_text("{ }")
        pin = LocalPath(tmp_path).pin("latest")
        assert pin.revision is None
        assert CacheKey.of(pin, {}) is None

    def test_a_file_is_a_package_set_too(self, tmp_path):
        """A .nix file can be named itself."""
        (tmp_path / "set.nix").write_text("{ }")
        assert LocalPath(tmp_path / "set.nix").pin("latest").fetch["path"] == str(tmp_path / "set.nix")

    def test_what_cannot_be_read_is_a_source_error(self, tmp_path):
        """A missing folder, and a folder without default.nix, are told at once."""
        for path in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(SourceError, match=r"cannot be read: No such file"):
                LocalPath(path).pin("latest")

    def test_tags_are_refused(self, tmp_path):
        """A folder has no tags."""
        with pytest.raises(InvalidTag):
            LocalPath(tmp_path).pin("v1")


class TestCacheKey:
    PIN = Pin(kind="git", url="https://example.org/set", revision=COMMIT, fetch={})

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "nixpkgs"},
            {"url": "https://example.org/other"},
            {"revision": "0" * 40},
            {"import_args": {"config": {"allowUnfree": True}}},
        ],
    )
    def test_every_part_of_the_source_counts(self, change):
        """Another source, revision or argument is another image."""
        assert CacheKey.of(attrs.evolve(self.PIN, **change), {}) != CacheKey.of(self.PIN, {})

    def test_fields_cannot_run_into_each_other(self):
        """Labels and lengths keep `ab`+`c` and `a`+`bc` apart."""
        keys = [
            CacheKey.of(self.PIN, fields)
            for fields in ({"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "", "b": "c"}, {})
        ]
        assert len(set(keys)) == len(keys)

    def test_a_rotated_token_is_no_other_source(self):
        """Credentials in the URL are not part of the identity."""
        one, other = (attrs.evolve(self.PIN, url=f"https://u:{token}@example.org/set") for token in ("old", "new"))
        assert CacheKey.of(one, {}) == CacheKey.of(other, {})


def test_import_args_are_json():
    """Arguments that cannot be passed to Nix are refused when the source is made."""
    with pytest.raises(InvalidConfig, match="JSON"):
        NixpkgsChannel("nixos-unstable", import_args={"overlay": object()})
    with contextlib.suppress(SourceError):
        LocalPath("/nowhere", import_args={"config": {"allowUnfree": True}}).pin("latest")

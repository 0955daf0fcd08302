"""popcount: closures are walked once, counted exactly, and kept for the next time."""

import io
import lzma
import sqlite3
import sys

import attrs
import pytest

from nixery_core.cancellation import Cancellation
from nixery_core.errors import (
    BinaryCacheError,
    Cancelled,
    InvalidClosure,
    InvalidConfig,
    InvalidDocument,
    InvalidStorePath,
    NarInfosFailed,
    ObjectNotFound,
    PathsNotFound,
    StorageError,
)
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.popcount import roots as roots_module
from nixery_core.popcount.counting import PathFacts, count_closures
from nixery_core.popcount.roots import parse_list, read_roots
from nixery_core.popcount.state import WalkState
from nixery_core.popcount.walk import MOST_FAILURES, walk_closures
from nixery_core.stores.narinfo import NarInfo

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"


def path(name, number=0):
    digest = Digest.of(f"{name} {number}".encode()).hex
    return StorePath("".join(ALPHABET[int(digest[i : i + 2], 16) & 31] for i in range(0, 64, 2)), name)


LIBC, LIBC_BIN, BASH = path("glibc-2.36"), path("glibc-2.36-bin"), path("bash-5.2")
GIT, GIT_DOC, TOOL = path("git-2.39"), path("git-2.39-doc"), path("tool")
TOOL_DEV, OLD_LIBC = path("tool-dev"), path("glibc-2.35")
LIBC_DRV, GIT_DRV, TOOL_DRV = path("glibc-2.36.drv"), path("git-2.39.drv"), path("tool.drv")

FACTS = {
    fact.path: fact
    for fact in (
        PathFacts(LIBC, (LIBC,), LIBC_DRV),
        PathFacts(LIBC_BIN, (LIBC, BASH), LIBC_DRV),
        PathFacts(BASH, (LIBC, BASH)),
        PathFacts(GIT, (BASH, LIBC_BIN), GIT_DRV),
        PathFacts(GIT_DOC, (), GIT_DRV),
        PathFacts(TOOL, (LIBC,), TOOL_DRV),
        PathFacts(TOOL_DEV, (TOOL,), TOOL_DRV),
        PathFacts(OLD_LIBC, ()),
    )
}


class Cache:
    """A binary cache in memory, which remembers what it was asked."""

    def __init__(self, facts=FACTS, broken=()):
        self._facts = facts
        self._broken = set(broken)
        self.asked = []

    def answers(self, paths):
        for path in paths:
            self.asked.append(path)
            yield path, self._answer(path)

    def _answer(self, path):
        if path in self._broken:
            return BinaryCacheError(f"{path.hash}.narinfo is cut short")
        fact = self._facts.get(path)
        if fact is None:
            return None
        nar = {"url": "nar/x", "nar_hash": Digest.of(b""), "nar_size": 96}
        return NarInfo(store_path=path, references=fact.references, deriver=fact.deriver, **nar)


class TestCounting:
    def test_closures_are_counted(self):
        """P(x) is the number of root packages whose closure holds x, each counted once however often it refers to x."""
        counts = count_closures(FACTS, [LIBC, BASH, GIT])
        assert counts.popularity.counts == {"bash": 2, "git": 1, "glibc": 3}
        assert (counts.roots, counts.paths) == (3, 4)

    def test_outputs_are_one_package(self):
        """Outputs of one derivation are one root, and what any of them refers to is in its closure once."""
        counts = count_closures(FACTS, [GIT, GIT_DOC, LIBC, LIBC_BIN])
        assert counts.roots == 2
        assert counts.popularity.counts == {"bash": 2, "git": 1, "glibc": 2}

    def test_outputs_without_a_version(self):
        """Without a version, the derivation tells which outputs belong together; each name finds the count."""
        counts = count_closures(FACTS, [TOOL, TOOL_DEV])
        assert counts.popularity.counts == {"glibc": 1, "tool": 1, "tool-dev": 1}
        assert counts.popularity.of(TOOL_DEV) == 1

    def test_an_alias_does_not_hide_a_package(self):
        """A name that is an output of one package and another package has the larger of the two counts."""
        real = [PathFacts(path("tool-dev-1.0", n), (), path("tool-dev-1.0.drv", n)) for n in range(3)]
        facts = FACTS | {fact.path: fact for fact in real}
        assert count_closures(facts, [TOOL_DEV]).popularity.counts["tool-dev"] == 1
        assert count_closures(facts, [TOOL_DEV, *(f.path for f in real)]).popularity.counts["tool-dev"] == 3

    def test_versions_are_one_name(self):
        """A root package that has two versions of another in its closure counts once for it."""
        both = PathFacts(path("both-1"), (LIBC, OLD_LIBC))
        facts = FACTS | {both.path: both}
        assert count_closures(facts, [both.path]).popularity.counts == {"both": 1, "glibc": 1}
        assert count_closures(facts, [LIBC, OLD_LIBC]).popularity.counts == {"glibc": 2}

    def test_a_deriver_of_another_name(self):
        """A derivation that is called something else does not rename a path."""
        odd = PathFacts(path("odd-1"), (), path("oddity-1.drv"))
        assert count_closures({odd.path: odd}, [odd.path]).popularity.counts == {"odd": 1}

    def test_missing_data(self):
        """What is referred to but unknown counts under its name; a root that is unknown is left out."""
        facts = {GIT: FACTS[GIT]}
        counts = count_closures(facts, [GIT, TOOL])
        assert counts.popularity.counts == {"bash": 1, "git": 1, "glibc": 1}
        assert counts.roots == 1
        assert count_closures({}, [GIT]).popularity.counts == {}

    def test_a_cycle_is_named(self):
        """References that go in a circle are an error, which names the paths."""
        facts = {LIBC: PathFacts(LIBC, (BASH,)), BASH: PathFacts(BASH, (LIBC,))}
        with pytest.raises(InvalidClosure, match="cycle") as caught:
            count_closures(facts, [LIBC])
        assert str(LIBC) in caught.value.message
        assert str(BASH) in caught.value.message


class TestWalk:
    def test_each_path_is_asked_once(self):
        """The walk finds what the roots refer to, and asks for nothing twice and nothing else."""
        cache, kept = Cache(), []
        walk = walk_closures([GIT, BASH, GIT], [cache], keep=kept.append)
        assert dict(walk.facts) == {p: FACTS[p] for p in (GIT, BASH, LIBC_BIN, LIBC)} | {
            BASH: attrs.evolve(FACTS[BASH], references=tuple(sorted((LIBC, BASH)))),
            GIT: attrs.evolve(FACTS[GIT], references=tuple(sorted((BASH, LIBC_BIN)))),
            LIBC_BIN: attrs.evolve(FACTS[LIBC_BIN], references=tuple(sorted((LIBC, BASH)))),
        }
        assert len(cache.asked) == len(set(cache.asked)) == 4
        assert {fact.path for fact in kept} == set(cache.asked)

    def test_what_is_known_is_not_asked(self):
        """What an earlier walk found is taken as it is, and what it refers to is followed."""
        cache, kept = Cache(), []
        walk = walk_closures([GIT], [cache], known={GIT: FACTS[GIT], BASH: FACTS[BASH]}, keep=kept.append)
        assert set(walk.facts) == {GIT, BASH, LIBC, LIBC_BIN}
        assert set(cache.asked) == {fact.path for fact in kept} == {LIBC, LIBC_BIN}

    def test_missing_paths_are_listed_at_once(self):
        """Everything else is looked up first; each missing path comes with one that refers to it."""
        facts = {p: fact for p, fact in FACTS.items() if p not in (LIBC, TOOL)}
        cache = Cache(facts)
        with pytest.raises(PathsNotFound, match="no binary cache has 2 of 5") as caught:
            walk_closures([GIT, TOOL], [cache])
        assert len(cache.asked) == 5
        assert caught.value.missing[str(TOOL)] == ""
        assert caught.value.missing[str(LIBC)] in {str(BASH), str(LIBC_BIN)}
        assert "--allow-missing" in caught.value.hint

    def test_missing_paths_may_be_left_out(self):
        """With allow_missing they are in the result, sorted, and no error."""
        facts = {p: fact for p, fact in FACTS.items() if p not in (LIBC, TOOL)}
        walk = walk_closures([GIT, TOOL], [Cache(facts)], allow_missing=True)
        assert list(walk.missing) == sorted((LIBC, TOOL), key=str)
        assert set(walk.facts) == {GIT, BASH, LIBC_BIN}

    def test_failures_are_listed_at_once(self):
        """Some narinfos that cannot be read do not keep the walk from the others; all are named with the reason."""
        many = {p: PathFacts(p, ()) for p in (path(f"p{n}-1") for n in range(40))}
        broken = [p for p in many if p.name in ("p3-1", "p17-1", "p39-1")]
        cache, kept = Cache(many, broken), []
        with pytest.raises(NarInfosFailed, match="3 store paths, but told of 37") as caught:
            walk_closures(many, [cache], keep=kept.append)
        assert set(caught.value.reasons) == {str(p) for p in broken}
        assert all("cut short" in reason for reason in caught.value.reasons.values())
        assert len(kept) == 37

    def test_a_cache_that_is_out_of_order(self):
        """A walk ends after a hundred failures; where nothing was ever told, with the first of them."""
        many = {p: PathFacts(p, ()) for p in (path(f"p{n}-1") for n in range(1000))}
        cache = Cache(many, list(many)[1:])
        with pytest.raises(NarInfosFailed, match=f"{MOST_FAILURES} store paths"):
            walk_closures(many, [cache])
        assert len(cache.asked) == MOST_FAILURES + 1
        with pytest.raises(BinaryCacheError, match="cut short") as caught:
            walk_closures(many, [Cache(many, many)])
        assert type(caught.value) is BinaryCacheError

    def test_progress(self):
        """Every path is told of; at the end all that were found are done."""
        facts = {p: fact for p, fact in FACTS.items() if p != TOOL}
        told = []
        walk_closures([GIT, TOOL], [Cache(facts)], allow_missing=True, on_progress=told.append)
        assert [progress.done for progress in told] == [1, 2, 3, 4, 5]
        assert (told[-1].found, told[-1].missing, told[-1].failed) == (5, 1, 0)

    def test_a_walk_can_be_cancelled(self):
        """The token is looked at for each path."""
        token, cache = Cancellation(), Cache()
        with pytest.raises(Cancelled):
            walk_closures([GIT], [cache], on_progress=lambda _: token.cancel(), cancellation=token)
        assert len(cache.asked) < 4

    def test_several_caches(self):
        """The next cache is asked for what one does not have or cannot tell; its error counts if no other helps."""
        without_git = {p: fact for p, fact in FACTS.items() if p != GIT}
        first, second = Cache(without_git, [BASH, TOOL]), Cache({p: FACTS[p] for p in (GIT, BASH)})
        with pytest.raises(NarInfosFailed) as caught:
            walk_closures([GIT, TOOL], [first, second])
        assert set(caught.value.reasons) == {str(TOOL)}
        assert set(second.asked) == {GIT, BASH, TOOL}
        assert set(walk_closures([GIT], [first, second]).facts) == {GIT, BASH, LIBC, LIBC_BIN}
        with pytest.raises(PathsNotFound):
            walk_closures([path("nowhere-1")], [first, second])

    def test_several_caches_that_are_out_of_order(self):
        """Also of several caches not every path is asked when all fail."""
        many = {p: PathFacts(p, ()) for p in (path(f"p{n}-1") for n in range(5000))}
        caches = [Cache(many, many), Cache(many, many)]
        with pytest.raises(BinaryCacheError, match="cut short"):
            walk_closures(many, caches)
        assert len(caches[0].asked) < 2000

    def test_nobody_to_ask(self):
        """Without a source there is no walk."""
        with pytest.raises(InvalidConfig):
            walk_closures([GIT], [])


class TestState:
    URL = ("https://me:secret@cache.example.org",)

    def test_a_walk_goes_on(self, tmp_path):
        """What was kept before an interrupt is known to the next walk, which asks for the rest."""
        file = tmp_path / "state"

        def interrupt(fact):
            state.keep(fact)
            if len(first.asked) == 2:
                raise KeyboardInterrupt

        first = Cache()
        with pytest.raises(KeyboardInterrupt), WalkState(file, self.URL) as state:
            walk_closures([GIT], [first], keep=interrupt)
        second = Cache()
        with WalkState(file, self.URL) as state:
            walk = walk_closures([GIT], [second], known=state.facts(), keep=state.keep)
        assert set(first.asked) | set(second.asked) == {GIT, BASH, LIBC, LIBC_BIN}
        assert set(first.asked) & set(second.asked) == set()
        assert count_closures(walk.facts, [GIT]).popularity.counts == {"bash": 1, "git": 1, "glibc": 1}

    def test_facts_come_back(self, tmp_path):
        """Everything that counting needs is in the file, and no password."""
        with WalkState(tmp_path / "state", self.URL) as state:
            for fact in FACTS.values():
                state.keep(fact)
        with WalkState(tmp_path / "state", [self.URL[0] + "/"]) as state:
            assert state.facts() == FACTS
        assert b"secret" not in (tmp_path / "state").read_bytes()
        assert [file.name for file in tmp_path.iterdir()] == ["state"]

    def test_another_cache_is_refused(self, tmp_path):
        """What two caches tell is not mixed."""
        WalkState(tmp_path / "state", self.URL).__exit__(None, None, None)
        with pytest.raises(InvalidConfig, match=r"holds what https://\*\*\*@cache.example.org told") as caught:
            WalkState(tmp_path / "state", [*self.URL, "https://other.example.org"])
        assert "--state" in caught.value.hint

    def test_another_file_is_refused(self, tmp_path):
        """A text, the database of another program and a later version are told apart, and left as they are."""
        (tmp_path / "text").write_bytes(b"text" * 1000)
        with sqlite3.connect(tmp_path / "other") as other:
            other.execute("CREATE TABLE x (y)")
        other.close()
        WalkState(tmp_path / "later", self.URL).__exit__(None, None, None)
        with sqlite3.connect(tmp_path / "later") as later:
            later.execute("PRAGMA user_version = 99")
        later.close()
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        for name, message in (("text", "not a database"), ("other", "another program"), ("later", "another version")):
            with pytest.raises(InvalidConfig, match=message):
                WalkState(tmp_path / name, self.URL)
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before

    def test_places_that_cannot_be_written(self, tmp_path):
        """A folder that is not there and a damaged database are errors with a next step."""
        with pytest.raises(StorageError, match="unable to open") as caught:
            WalkState(tmp_path / "none" / "state", self.URL)
        assert caught.value.hint
        with WalkState(tmp_path / "state", self.URL) as state:
            for number in range(2000):
                state.keep(PathFacts(path(f"p{number}-1"), ()))
        data = bytearray((tmp_path / "state").read_bytes())
        data[8192:] = b"\xff" * (len(data) - 8192)
        (tmp_path / "state").write_bytes(data)
        with pytest.raises(StorageError, match="malformed") as caught, WalkState(tmp_path / "state", self.URL) as state:
            state.facts()
        assert "remove it" in caught.value.hint

    def test_two_walks_with_one_file(self, tmp_path):
        """The second is told so at once."""
        with WalkState(tmp_path / "state", self.URL), pytest.raises(StorageError, match="locked") as caught:
            WalkState(tmp_path / "state", self.URL)
        assert "another popcount" in caught.value.hint


class TestRoots:
    def test_paths_and_lists(self, tmp_path, monkeypatch):
        """Store paths, files, packed files and standard input can be mixed; each path is there once."""
        (tmp_path / "store-paths.xz").write_bytes(lzma.compress(f"{LIBC}\n{BASH}\n".encode()))
        (tmp_path / "plain").write_bytes(f"\n  {GIT}  \r\n{LIBC}".encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{TOOL}\n".encode())))
        found = read_roots([str(OLD_LIBC), str(tmp_path / "store-paths.xz"), f"file://{tmp_path}/plain", "-"])
        assert found == tuple(sorted((LIBC, BASH, GIT, TOOL, OLD_LIBC), key=str))

    def test_a_channel(self, monkeypatch):
        """channel:NAME is the list that the channel publishes."""
        asked = []
        monkeypatch.setattr(roots_module, "read_document", lambda url: asked.append(url) or f"{BASH}\n".encode())
        assert read_roots(["channel:nixos-unstable"]) == (BASH,)
        assert asked == ["https://channels.nixos.org/nixos-unstable/store-paths.xz"]

    def test_other_lines_are_listed_at_once(self):
        """A list of something else is refused, with the numbers of its lines."""
        data = b"\n".join([str(LIBC).encode(), *[b"<html>"] * 12, b"/gnu/store/x", bytes([255]), b"abc-x"])
        with pytest.raises(InvalidDocument, match="line 2: '<html>'; line 3") as caught:
            parse_list(data, where="here")
        assert "and 5 more" in caught.value.message

    def test_bad_words(self, tmp_path):
        """A store path with a mistake, and a list that is not there, are told apart."""
        with pytest.raises(InvalidStorePath):
            read_roots(["/nix/store/abc"])
        with pytest.raises(ObjectNotFound):
            read_roots([str(tmp_path / "none")])

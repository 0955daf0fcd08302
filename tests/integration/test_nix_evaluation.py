"""Names are looked up by a real Nix, in the package set made of Debian packages."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from nixery_core.cancellation import Cancellation
from nixery_core.errors import (
    Cancelled,
    EvaluationError,
    InvalidName,
    NixTimeout,
    PackageError,
    PackageProblem,
    ProblemKind,
    SourceError,
)
from nixery_core.events import BuildEvent, PackageSkipped
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import AMD64
from nixery_core.nix import Nix
from nixery_core.sources import LocalPath, Pin


class Evaluate:
    """Evaluates names of one package set, and keeps the events."""

    def __init__(self, nix: Nix, folder: Path) -> None:
        self.nix = nix
        self.folder = folder
        self.events: list[BuildEvent] = []

    def __call__(self, *names: str, optional: tuple[str, ...] = (), **import_args: Any) -> tuple[ResolvedPackage, ...]:
        pin = LocalPath(self.folder, import_args=import_args).pin("latest")
        return self.nix.evaluate(pin, names, optional, AMD64, on_event=self.events.append)

    def problems(self, *names: str) -> dict[str, PackageProblem]:
        with pytest.raises(PackageError) as caught:
            self(*names)
        return {problem.name: problem for problem in caught.value.problems}


@pytest.fixture
def debian(nix: Nix, debian_packages: Path) -> Evaluate:
    return Evaluate(nix, debian_packages)


def write_set(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "default.nix").write_text(text)
    return folder


DRV = """
  drv = name: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" ": > $out" ];
  };
"""


ENDLESS = "let f = n: if n == 0 then 1 else f (n - 1) + f (n - 1); in builtins.seq (f 70) { }"


class TestNames:
    def test_finds_literal_folded_nested_and_output_names(self, debian: Evaluate) -> None:
        """Every way to write a name leads to its attribute, and the result is sorted by attribute."""
        packages = debian("jq", "PYTHON3PACKAGES.Six", "curl.man", "bashinteractive", "curl")
        assert [package.attribute for package in packages] == [
            "bashInteractive", "curl", "curl.man", "jq", "python3Packages.six"
        ]  # fmt: skip
        assert [[output.name for output in package.outputs] for package in packages] == [
            ["out"], ["bin", "man"], ["man"], ["out"], ["out"]
        ]  # fmt: skip
        assert packages[0].name == "bashinteractive"
        assert all(package.derivation and package.derivation.endswith(".drv") for package in packages)

    def test_names_of_one_attribute_are_one_package(self, debian: Evaluate) -> None:
        """An attribute asked for twice is there once, whatever the order of the names."""
        assert debian("jq", "JQ", "jq", optional=("Jq",)) == debian("JQ", "jq")
        assert len(debian("jq", "JQ")) == 1

    def test_nothing_asked_is_nothing_found(self, debian: Evaluate) -> None:
        """No names need no Nix."""
        assert debian() == ()

    def test_a_digit_may_stand_without_its_underscore(self, nix: Nix, tmp_path: Path) -> None:
        """A name that begins with a digit means the literal attribute first, then the one behind an underscore."""
        text = (
            f"""let {DRV} in {{ _1pass = drv "one"; "2pass" = drv "two"; _2pass = drv "no"; _3Pass = drv "three"; }}"""
        )
        packages = Evaluate(nix, write_set(tmp_path, text))("1pass", "2pass", "3pass")
        assert {package.name: package.attribute for package in packages} == {
            "1pass": "_1pass", "2pass": "2pass", "3pass": "_3Pass"
        }  # fmt: skip

    def test_colliding_case_is_ambiguous_unless_literal(self, nix: Nix, tmp_path: Path) -> None:
        """Two attributes that differ in case are reported, and each is still reached by its own name."""
        text = f"""let {DRV} in {{ Foo = drv "a"; fOO = drv "b"; sub = {{ Bar = drv "c"; bAR = drv "d"; }}; }}"""
        evaluate = Evaluate(nix, write_set(tmp_path, text))
        assert [package.attribute for package in evaluate("Foo", "sub.bAR")] == ["Foo", "sub.bAR"]
        problems = evaluate.problems("foo", "sub.bar")
        assert problems["foo"].candidates == ("Foo", "fOO")
        assert problems["sub.bar"].candidates == ("sub.Bar", "sub.bAR")
        assert {problem.kind for problem in problems.values()} == {ProblemKind.AMBIGUOUS}

    def test_a_case_insensitive_match_counts_for_the_set_at_hand_only(self, nix: Nix, tmp_path: Path) -> None:
        """A top-level attribute in other case does not rename a component of a nested set."""
        text = f"""let {DRV} in {{ SIX = drv "top"; set = {{ six = drv "inner"; }}; }}"""
        packages = Evaluate(nix, write_set(tmp_path, text))("set.six")
        assert [package.attribute for package in packages] == ["set.six"]

    def test_an_attribute_called_error_confuses_nobody(self, nix: Nix, tmp_path: Path) -> None:
        """What a package is named or holds does not change what becomes of it."""
        text = f"""let {DRV} in {{ error = drv "e"; x = drv "x" // {{ error = "no"; status = "failed"; }}; }}"""
        assert [package.attribute for package in Evaluate(nix, write_set(tmp_path, text))("x", "error")] == [
            "error",
            "x",
        ]

    @pytest.mark.parametrize("name", ["a b", "${builtins.abort}", "x;y", 'q"', "", "a..b", "../x"])
    def test_what_is_no_name_never_reaches_nix(self, debian: Evaluate, name: str) -> None:
        """Text that is not an attribute path is refused before Nix is called."""
        with pytest.raises(InvalidName):
            debian("jq", name)


class TestMeta:
    def test_outputs_priority_and_defaults(self, nix: Nix, tmp_path: Path) -> None:
        """meta.outputsToInstall and meta.priority are followed, and unreadable ones have defaults or are named."""
        text = f"""let {DRV} in {{
          plain = drv "plain";
          high = drv "high" // {{ meta.priority = 10; }};
          broken-meta = drv "m" // {{ meta.priority = throw "no priority today"; }};
          lost = drv "lost" // {{ meta.outputsToInstall = [ "out" "lost" ]; }};
        }}"""
        evaluate = Evaluate(nix, write_set(tmp_path, text))
        assert [package.priority for package in evaluate("high", "plain")] == [10, 5]
        assert "no priority today" in evaluate.problems("broken-meta")["broken-meta"].reason
        assert "the output 'lost'" in evaluate.problems("lost")["lost"].reason


class TestProblems:
    def test_all_problems_are_listed_at_once(self, debian: Evaluate) -> None:
        """Everything that can be wrong with a name is told in one error, in the order asked, each with its kind."""
        names = (
            "curll", "throws", "unfree", "asserts", "aString", "aFunction", "aNumber", "python3Packages",
            "python3Packages.sixx", "aString.foo", "throws.inner",
        )  # fmt: skip
        problems = debian.problems("jq", *names)
        assert tuple(problems) == names
        assert {name: problem.kind.name for name, problem in problems.items()} == {
            "curll": "NOT_FOUND", "throws": "BROKEN", "unfree": "UNFREE", "asserts": "FAILED",
            "aString": "NOT_A_PACKAGE", "aFunction": "NOT_A_PACKAGE", "aNumber": "NOT_A_PACKAGE",
            "python3Packages": "NOT_A_PACKAGE", "python3Packages.sixx": "NOT_FOUND", "aString.foo": "NOT_FOUND",
            "throws.inner": "BROKEN",
        }  # fmt: skip
        assert problems["curll"].candidates == ("curl",)
        assert problems["python3Packages.sixx"].candidates == ("python3Packages.six",)
        assert problems["throws"].reason == "this package is marked as broken"
        assert "unfree license" in problems["unfree"].reason
        assert "function" in problems["aFunction"].reason

    def test_what_cannot_be_caught_hides_no_other_problem(self, debian: Evaluate) -> None:
        """Packages that end the whole evaluation are found one by one, beside all others."""
        problems = debian.problems("aborts", "jq", "infinite", "curll", "missingInner", "throws")
        assert tuple(problems) == ("aborts", "infinite", "curll", "missingInner", "throws")
        assert "abort called" in problems["aborts"].reason
        assert "infinite recursion" in problems["infinite"].reason
        assert "noSuchAttr" in problems["missingInner"].reason
        assert problems["curll"].candidates == ("curl",)

    def test_optional_names_are_never_fatal(self, debian: Evaluate) -> None:
        """Optional names that cannot be used are left out, each with an event that says why."""
        packages = debian("jq", optional=("nano", "hello", "throws", "aborts", "aString"))
        assert [package.attribute for package in packages] == ["hello", "jq"]
        skipped = {event.name: event.reason for event in debian.events if isinstance(event, PackageSkipped)}
        assert list(skipped) == ["nano", "throws", "aborts", "aString"]
        assert skipped["nano"] == "not found"
        assert "marked as broken" in skipped["throws"]

    def test_import_args_reach_the_set(self, debian: Evaluate) -> None:
        """What the source passes decides: an unfree package is there once it is allowed."""
        assert len(debian("unfree", config={"allowUnfree": True})) == 1


class TestLoading:
    def failure(self, nix: Nix, folder: Path, text: str, **import_args: Any) -> EvaluationError:
        with pytest.raises(EvaluationError) as caught:
            Evaluate(nix, write_set(folder, text))("x", **import_args)
        return caught.value

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{ x = ; }", "syntax error"),
            ('throw "not today"', "not today"),
            ('abort "never"', "never"),
            ("{ mandatory }: { }", "mandatory"),
            ("[ 1 2 ]", "is a list"),
            ("{ ... }: 3", "is a int"),
            ("import ./absent.nix", "absent.nix"),
        ],
    )
    def test_a_set_that_does_not_load_is_one_error(self, nix: Nix, tmp_path: Path, text: str, words: str) -> None:
        """A broken set is an EvaluationError with Nix's reason, not a problem of every name."""
        error = self.failure(nix, tmp_path, text)
        assert words in error.message
        assert str(tmp_path) in error.message
        assert error.trace

    def test_arguments_fit_the_function(self, nix: Nix, tmp_path: Path) -> None:
        """A set gets the system where it takes one, and never settings from the home of the caller."""
        seen = 'x = derivation { name = "n"; inherit system; builder = config.name or "none"; }'
        for head in (
            '{ system, config ? { name = "home"; } }:',
            '{ config ? { name = "home"; }, ... }@args: let system = args.system or "none"; in',
        ):
            assert len(Evaluate(nix, write_set(tmp_path, f"{head} {{ {seen}; }}"))("x")) == 1
        assert len(Evaluate(nix, write_set(tmp_path, f"let {DRV} in args: {{ x = drv args.system; }}"))("x")) == 1
        assert len(Evaluate(nix, write_set(tmp_path, f'let {DRV} in {{ x = drv "x"; }}'))("x")) == 1

    def test_an_argument_that_nobody_takes_is_an_error(self, nix: Nix, tmp_path: Path) -> None:
        """Arguments of the source are not dropped in silence."""
        assert "colour" in self.failure(nix, tmp_path, "{ system }: { }", colour="red").message
        assert "not a function" in self.failure(nix, tmp_path, "{ }", colour="red").message

    def test_a_set_that_vanished_is_a_source_error(self, nix: Nix, tmp_path: Path) -> None:
        """A folder that went away after it was pinned is told as such."""
        pin = Pin(kind="path", url="/gone", revision=None, fetch={"type": "path", "path": str(tmp_path / "gone")})
        with pytest.raises(SourceError, match="does not exist"):
            nix.evaluate(pin, ["x"], [], AMD64)

    def test_the_folder_may_have_any_name(self, nix: Nix, tmp_path: Path) -> None:
        """Spaces, quotes and dollars in a path are no code."""
        folder = write_set(tmp_path / "a b'c\"${d}", f'let {DRV} in {{ x = drv "x"; }}')
        assert len(Evaluate(nix, folder)("x")) == 1


class TestEnds:
    def test_more_than_a_pipe_of_words_does_not_hang(self, nix: Nix, tmp_path: Path) -> None:
        """A set that traces far more than a pipe holds is evaluated all the same."""
        text = f"""let {DRV} line = builtins.concatStringsSep "" (builtins.genList (n: "0123456789") 100);
          talk = builtins.foldl' (n: i: builtins.trace "${{toString i}} ${{line}}" n) 0 (builtins.genList (n: n) 500);
          in builtins.seq talk {{ x = drv "x"; }}"""
        assert len(Evaluate(nix, write_set(tmp_path, text))("x")) == 1

    def test_an_endless_evaluation_times_out(self, nix: Nix, tmp_path: Path) -> None:
        """The timeout ends an evaluation that would never end."""
        text = ENDLESS
        limited = attrs.evolve(nix, timeout=1.0)
        begin = time.monotonic()
        with pytest.raises(NixTimeout, match="nix-instantiate"):
            Evaluate(limited, write_set(tmp_path, text))("x")
        assert time.monotonic() - begin < 10

    def test_an_evaluation_can_be_cancelled(self, nix: Nix, tmp_path: Path) -> None:
        """Cancelling from another thread ends an evaluation that would never end."""
        text = ENDLESS
        pin = LocalPath(write_set(tmp_path, text)).pin("latest")
        token = Cancellation()
        timer = threading.Timer(0.5, token.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            nix.evaluate(pin, ["x"], [], AMD64, cancellation=token)
        timer.join()

    def test_a_store_that_cannot_be_opened_is_told(self, nix: Nix, debian_packages: Path) -> None:
        """A store folder that cannot be made is no problem of the package set."""
        with pytest.raises(EvaluationError, match="Nix cannot evaluate"):
            Evaluate(attrs.evolve(nix, store="/proc/nowhere"), debian_packages)("jq")

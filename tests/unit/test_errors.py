"""The tree of errors: complete, picklable, readable, without secrets."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import attrs
import pytest

import nixery_core
from nixery_core import errors
from nixery_core.errors import NixeryError, PackageError, PackageProblem, ProblemKind, nearest

SECRET = "https://me:hunter2@example.org/set?token=abc&ref=main"
MASKED = "https://***@example.org/set?token=***&ref=main"


def every_class(root: type[NixeryError] = NixeryError) -> Iterator[type[NixeryError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_class(child)


# all of the library, whichever of it other tests have imported by now
for module in pkgutil.walk_packages(nixery_core.__path__, "nixery_core."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
# subclasses that tests elsewhere define are not the library's
CLASSES = [cls for cls in every_class() if cls.__module__.partition(".")[0] == "nixery_core"]


def sample(cls: type[NixeryError]) -> NixeryError:
    """Return an error of *cls* with a value in every field."""
    values = {
        "key": "blobs/sha256/00",
        "trace": ("error: one", "two"),
        "log_tail": ("first", "last"),
        "derivation": "/nix/store/00000000000000000000000000000000-x.drv",
        "seconds": 1.5,
        "missing": {"/nix/store/00000000000000000000000000000000-x": "/nix/store/00000000000000000000000000000001-y"},
        "reasons": {"/nix/store/00000000000000000000000000000000-x": "the narinfo has no NarSize"},
        "problems": (PackageProblem("htpo", ProblemKind.NOT_FOUND, candidates=("htop",)),),
    }
    extra = {field.name: values[field.name] for field in attrs.fields(cls) if field.name not in ("message", "hint")}
    return cls("it failed", hint="try again", **extra)


def fail(cls: type[NixeryError]) -> None:
    raise sample(cls)


class TestTree:
    def test_docstring_draws_the_classes(self) -> None:
        """The tree in the module's docstring is the tree of classes, in the order of the module."""

        def drawn(cls: type[NixeryError], indent: str) -> Iterator[str]:
            children = [child for child in cls.__subclasses__() if child in CLASSES]
            for child in children:
                last = child is children[-1]
                yield f"{indent}{'└' if last else '├'}── {child.__name__}"
                yield from drawn(child, indent + ("    " if last else "│   "))

        assert errors.__doc__ is not None
        found = [re.match(r" {4}([│├└─ ]*── \w+)", line) for line in errors.__doc__.splitlines()]
        assert [match[1] for match in found if match] == list(drawn(NixeryError, ""))

    def test_every_error_is_defined_in_one_place(self) -> None:
        """No other module of the library adds an exception class that a caller would have to know."""
        assert {cls.__module__ for cls in CLASSES} == {"nixery_core.errors"}

    def test_nothing_else_is_raised_by_name(self) -> None:
        """No module of the library raises a plain Exception or RuntimeError."""
        package = Path(nixery_core.__file__).parent
        pattern = re.compile(r"raise (?:Exception|RuntimeError|BaseException)\b")
        assert [str(file) for file in package.rglob("*.py") if pattern.search(file.read_text())] == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
class TestEveryError:
    def test_pickles_with_all_fields(self, cls: type[NixeryError]) -> None:
        """An error comes out of a pickle with its class, its fields, its notes and its text."""
        error = sample(cls)
        error.add_note("seen in a worker")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(error, protocol))
            assert type(copy) is cls
            assert attrs.asdict(copy, recurse=False) == attrs.asdict(error, recurse=False)
            assert copy.__notes__ == ["seen in a worker"]
            assert (str(copy), copy.diagnostics()) == (str(error), error.diagnostics())

    def test_text_is_one_line(self, cls: type[NixeryError]) -> None:
        """`str()` is one line for logs: what failed, and the next step."""
        assert str(sample(cls)) == "it failed (try again)"
        assert str(cls("it failed")) == "it failed"

    def test_diagnostics_tell_every_field(self, cls: type[NixeryError]) -> None:
        """The text for a person begins with the message, ends with the next step, and leaves no detail out."""
        error = sample(cls)
        text = error.diagnostics()
        assert text.startswith("it failed")
        assert text.rstrip(")").endswith("try again")
        shown = {"trace": "error: one", "log_tail": "> last", "derivation": "-x.drv", "problems": "did you mean htop?"}
        for field, expected in shown.items():
            if hasattr(error, field):
                assert expected in text
        assert cls("it failed").diagnostics() == "it failed"

    def test_secrets_are_masked(self, cls: type[NixeryError]) -> None:
        """No text of an error shows userinfo of a URL or a secret parameter."""
        error = cls(f"cannot read {SECRET}", hint=f"look at {SECRET}")
        assert error.message == f"cannot read {MASKED}"
        for text in (str(error), error.diagnostics(), repr(error), str(error.args)):
            assert "hunter2" not in text
            assert "abc" not in text

    def test_is_caught_as_its_parents(self, cls: type[NixeryError]) -> None:
        """Every error is a NixeryError and an Exception, and no other built-in error."""
        builtin = [parent for parent in cls.__mro__ if parent.__module__ == "builtins"]
        assert builtin == [Exception, BaseException, object]


def test_errors_come_out_of_a_process_pool() -> None:
    """A worker that raises any error of the tree reports it, and the pool lives on."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        for cls in CLASSES:
            error = pool.submit(fail, cls).exception(timeout=30)
            assert type(error) is cls
            assert isinstance(error, NixeryError)
            assert attrs.asdict(error, recurse=False) == attrs.asdict(sample(cls), recurse=False)


class TestDetails:
    def test_every_package_problem_is_listed(self) -> None:
        """A person sees all packages that cannot be used at once, with near names."""
        error = PackageError(
            "2 packages cannot be used",
            problems=(
                PackageProblem("htpo", ProblemKind.NOT_FOUND, candidates=("htop",)),
                PackageProblem("Foo", ProblemKind.AMBIGUOUS, candidates=("foo", "fOO")),
                PackageProblem("vim", ProblemKind.BROKEN, reason=f"see {SECRET}"),
            ),
        )
        assert error.diagnostics().splitlines() == [
            "2 packages cannot be used",
            "  htpo: not found; did you mean htop?",
            "  Foo: ambiguous; it could be foo, fOO",
            f"  vim: broken: see {MASKED}",
        ]

    def test_build_log_is_quoted(self) -> None:
        """A failed build shows its derivation and the end of its log."""
        error = errors.NixBuildError("a build failed", derivation="/nix/store/x.drv", log_tail=("cc: not found",))
        assert error.diagnostics().splitlines()[1:] == ["  derivation: /nix/store/x.drv", "  > cc: not found"]

    @pytest.mark.parametrize("field", ["log_tail", "trace"])
    def test_no_secret_in_what_nix_printed(self, field: str) -> None:
        """Lines that Nix printed are masked for a person, too."""
        cls = errors.NixBuildError if field == "log_tail" else errors.EvaluationError
        assert "hunter2" not in cls("failed", **{field: (f"fetching {SECRET}",)}).diagnostics()

    def test_errors_can_be_kept_in_sets(self) -> None:
        """Every error hashes, as printing a chain of tracebacks asks for."""
        assert len({sample(cls) for cls in CLASSES}) == len(CLASSES)

    @pytest.mark.parametrize(
        ("name", "known", "expected"),
        [
            ("GTI", ["git", "bash"], ("git",)),
            ("zzzz", ["git", "bash"], ()),
            ("python3", ["python2", "python3", "python311"], ("python3", "python2", "python311")),
            ("x", [], ()),
        ],
    )
    def test_nearest(self, name: str, known: list[str], expected: tuple[str, ...]) -> None:
        """Near names are found whatever their case, best first, and far names are not."""
        assert sorted(nearest(name, known)) == sorted(expected)
        assert nearest(name, known)[:1] == expected[:1]

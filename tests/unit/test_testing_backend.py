"""The conformance suite itself: it must fail for backends that break its promises."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUITE = """
    import pytest
    from nixery_core.storage.local import LocalBackend
    from nixery_core.testing.backend import BackendTests

    {code}

    class TestBroken(BackendTests):
        large = 100_000

        @pytest.fixture
        def backend(self, tmp_path):
            return Broken(tmp_path / "storage")
"""


def run(pytester: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    body = "\n".join("    " + line for line in code.strip("\n").splitlines()).strip()
    pytester.makepyfile(SUITE.format(code=body))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q", *arguments)


def test_suite_without_a_backend_says_what_to_do(pytester: pytest.Pytester) -> None:
    """A subclass without the fixture gets a sentence, not a puzzle."""
    pytester.makepyfile("from nixery_core.testing.backend import BackendTests\nclass TestMine(BackendTests): ...")
    result = pytester.runpytest_inprocess("-q", "-k", "test_stat")
    result.stdout.fnmatch_lines(["*define a fixture `backend`*"])
    assert result.ret != 0


def test_correct_backend_passes(pytester: pytest.Pytester) -> None:
    """The suite asks nothing that the contract does not."""
    result = run(pytester, "class Broken(LocalBackend): ...")
    assert result.ret == 0


@pytest.mark.parametrize(
    ("code", "failing"),
    [
        (
            """
class Broken(LocalBackend):
    def create(self, key, data, *, content_type=""):
        path = self.root / "staging" / "left"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return super().create(key, data)
""",
            "test_stat",
        ),
        (
            """
class Broken(LocalBackend):
    def create(self, key, data, *, content_type=""):
        if self.stat(key) is not None:
            return False
        self.replace(key, data)
        return True
""",
            "test_one_of_many_creates",
        ),
        (
            """
class Broken(LocalBackend):
    def replace(self, key, data, *, content_type=""):
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
""",
            "test_readers_see_old_or_new_never_a_mix",
        ),
        (
            """
class Broken(LocalBackend):
    def list(self, prefix):
        return reversed(list(super().list(prefix)))
""",
            "test_list_is_sorted_and_exact",
        ),
        (
            """
class Broken(LocalBackend):
    def _path(self, key):
        return self.root / key
""",
            "test_bad_keys_are_refused",
        ),
    ],
    ids=["leftovers", "create that races", "replace in place", "unsorted", "keys that lead out"],
)
def test_broken_backend_fails(pytester: pytest.Pytester, code: str, failing: str, tmp_path: Path) -> None:
    """A backend that breaks a promise fails the test of that promise."""
    result = run(pytester, code, "-k", failing)
    assert result.ret == pytest.ExitCode.TESTS_FAILED

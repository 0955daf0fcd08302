"""What names mean in an index."""

import pickle

import pytest

from nixery_core.errors import PackageProblem, ProblemKind
from nixery_core.index.names import Found, NameTable, meanings
from nixery_core.index.package_index import explicit_package

TABLE = NameTable(
    ["git", "Upper", "_1password", "twice", "Twice", "python3Packages.six", "python3Packages.Six2", "_9P", "curl"]
)


class TestNameTable:
    @pytest.mark.parametrize(
        ("name", "attribute"),
        [
            ("git", "git"),
            ("upper", "Upper"),
            ("1password", "_1password"),
            ("_1password", "_1password"),
            ("9p", "_9P"),
            ("twice", "twice"),
            ("python3packages.six", "python3Packages.six"),
            ("python3packages.six2", "python3Packages.Six2"),
        ],
    )
    def test_literal_first_then_underscore_then_case(self, name, attribute):
        """A name means the literal attribute, else the one behind "_", else the one of other case."""
        assert TABLE.find(name) == Found(attribute)

    def test_collisions_are_told(self):
        """Two attributes that differ in case alone, and no literal one: neither is chosen."""
        assert TABLE.find("TWICE").candidates == ("Twice", "twice")

    def test_each_set_has_its_own_case(self):
        """Other case is forgiven for each component by itself."""
        assert TABLE.find("PYTHON3PACKAGES.SIX").attribute == "python3Packages.six"

    def test_what_follows_a_package_is_given_back(self):
        """The output of a package is named behind it."""
        assert TABLE.find("curl.man") == Found("curl", ("man",))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("gti", "gti: not found; did you mean git?"),
            ("python3packages.sixx", "python3packages.sixx: not found: python3Packages has no sixx"
             "; did you mean python3Packages.six, python3Packages.Six2?"),
            ("python3packages", "python3packages: not a package: it is a set of attributes"
             "; name a package in it: python3Packages.<package>"),
        ],
    )  # fmt: skip
    def test_what_is_not_there_is_told_with_what_is_near(self, name, text):
        """A wrong name says where the search ended, and what could have been meant."""
        found = TABLE.find(name)
        assert isinstance(found, PackageProblem)
        assert found.describe() == text

    def test_pickles_as_its_names(self):
        """A copy in another process finds the same."""
        assert pickle.loads(pickle.dumps(TABLE)).find("upper") == Found("Upper")

    def test_a_package_may_hold_packages(self):
        """A package that is a set of packages as well is found, and so is what it holds."""
        table = NameTable(["python3", "python3.pkgs"])
        assert table.find("python3") == Found("python3")
        assert table.find("python3.pkgs") == Found("python3.pkgs")
        assert table.find("python3.man") == Found("python3", ("man",))


class TestMeanings:
    def test_digits_reach_both_spellings(self):
        """Without a literal match, what is behind "_" and what differs in case are both meant."""
        assert meanings("1a", ["_1A", "1A"]) == ["1A", "_1A"]


class TestExplicitPackage:
    def test_a_store_path_is_its_own_package(self):
        """The base name of a store path names that path and nothing else."""
        package = explicit_package("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15")
        assert str(package.outputs[0].path) == "/nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15"
        assert package.attribute == package.name == "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15"

    @pytest.mark.parametrize("name", ["git", "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw", "e" * 32 + "-x", "a" * 31 + "-x"])
    def test_anything_else_is_a_name(self, name):
        """What only looks like a store path is looked up as a name."""
        assert explicit_package(name) is None


def test_problems_have_the_kinds_of_nix():
    """An index tells a wrong name with the same class of problem as Nix does."""
    assert TABLE.find("gti").kind is ProblemKind.NOT_FOUND
    assert TABLE.find("python3packages").kind is ProblemKind.NOT_A_PACKAGE

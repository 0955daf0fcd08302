"""Names, tags and attribute paths."""

import pytest

from nixery_core.errors import InvalidName, InvalidTag
from nixery_core.model.names import (
    META_PACKAGES,
    MetaPackage,
    check_attribute,
    check_name,
    check_tag,
    parse_name,
)
from nixery_core.model.platform import AMD64, ARM64


class TestGrammar:
    @pytest.mark.parametrize("name", ["git", "shell/git/htop", "a.b", "a_b", "a__b", "a--b", "1password", "a" * 255])
    def test_names_of_the_specification_are_taken(self, name):
        """Whatever the distribution-spec grammar allows is a name."""
        assert check_name(name) == name

    @pytest.mark.parametrize(
        "name", ["", "/", "a//b", "a/", "/a", "Git", "a+b", "_a", "a_", "a..b", "a___b", "a b", "ä", "a\n"]
    )
    def test_other_names_are_refused(self, name):
        """What the grammar does not allow is refused before any work."""
        with pytest.raises(InvalidName, match="not an image name"):
            check_name(name)

    def test_long_names_are_refused(self):
        """Clients refuse more than 255 characters, so we do."""
        with pytest.raises(InvalidName, match="256 characters"):
            check_name("a" * 256)

    def test_upper_case_gets_a_hint(self):
        """Whoever writes an attribute as nixpkgs spells it is told how to name it."""
        with pytest.raises(InvalidName) as caught:
            check_name("python3Packages.six")
        assert "lower-case names" in caught.value.hint

    @pytest.mark.parametrize("tag", ["latest", "v1.0", "_x", "A-b_c.d", "a" * 128])
    def test_tags_of_the_specification_are_taken(self, tag):
        """Whatever the grammar of tags allows is a tag."""
        assert check_tag(tag) == tag

    @pytest.mark.parametrize("tag", ["", ".x", "-x", "a/b", "a b", "a" * 129, "a\n", "../x"])
    def test_other_tags_are_refused(self, tag):
        """A tag never reaches git or Nix as anything but a tag."""
        with pytest.raises(InvalidTag):
            check_tag(tag)

    @pytest.mark.parametrize(
        "attribute", ["", ".", "a.", ".a", "a..b", "-a", "a b", 'a"b', "a;b", "a${b}", "a/b", "a\n"]
    )
    def test_attributes_that_are_no_paths_are_refused(self, attribute):
        """Nothing but an attribute path gets near an expression."""
        with pytest.raises(InvalidName):
            check_attribute(attribute)


class TestMetaPackages:
    def test_shell_stands_for_an_interactive_environment(self):
        """`shell` brings what Nixery's shell brings; tools a set may lack are optional."""
        parsed = parse_name("shell/git")
        assert parsed.packages == ("bashInteractive", "coreutils", "git")
        assert parsed.optional == ("moreutils", "nano")

    def test_platforms_come_first_in_any_order_with_shell(self):
        """`arm64/shell/x` and `shell/arm64/x` ask for the same."""
        assert parse_name("arm64/shell/git") == parse_name("shell/arm64/git")
        assert parse_name("arm64/git").platform == ARM64
        assert parse_name("amd64/git").platform == parse_name("git").platform == AMD64

    def test_order_and_repetition_do_not_matter(self):
        """Two names of the same packages ask for the same image."""
        assert parse_name("git/htop/git") == parse_name("htop/git")

    def test_a_meta_package_after_a_package_is_refused(self):
        """A late meta-package would be looked up as a package; the caller is told to move it."""
        with pytest.raises(InvalidName, match="shell comes after") as caught:
            parse_name("git/shell")
        assert caught.value.hint == "put shell first"

    def test_a_name_without_packages_is_refused(self):
        """A platform alone is no image."""
        with pytest.raises(InvalidName, match="names no package"):
            parse_name("arm64")

    def test_two_platforms_are_refused(self):
        """An image has one platform."""
        with pytest.raises(InvalidName, match="two platforms"):
            parse_name("arm64/amd64/git")

    def test_embedders_add_their_own(self):
        """A meta-package of the embedder works like a built-in one."""
        metas = {**META_PACKAGES, "web": MetaPackage(packages=("nginx",), optional=("certbot",), platform=ARM64)}
        parsed = parse_name("web/git", metas)
        assert (parsed.packages, parsed.optional, parsed.platform) == (("git", "nginx"), ("certbot",), ARM64)

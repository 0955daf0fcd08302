"""Digests and store paths, and Nix's ways to write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nixery_core.errors import InvalidDigest, InvalidStorePath
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath

HASHES = json.loads((Path(__file__).parents[1] / "golden" / "nix-hashes.json").read_text())
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("row", HASHES, ids=[repr(row["text"])[:12] for row in HASHES])
class TestWhatNixPrints:
    def test_hash_is_the_one_of_nix(self, row: dict[str, str]) -> None:
        """The digest of a text is what nix-hash prints for a file with that text."""
        assert Digest.of(row["text"].encode()).hex == row["base16"]

    def test_every_form_is_read(self, row: dict[str, str]) -> None:
        """Base 16, base 32 and SRI are three ways to write one hash."""
        forms = [f"sha256:{row['base16']}", f"sha256:{row['base32']}", row["sri"]]
        assert [Digest.parse_nix(form).hex for form in forms] == [row["base16"]] * 3

    def test_base_32_is_written_as_nix_does(self, row: dict[str, str]) -> None:
        """What goes into narinfo files is character for character what Nix writes."""
        assert Digest.of(row["text"].encode()).to_nix() == f"sha256:{row['base32']}"


class TestDigest:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "sha256",
            "sha256:",
            EMPTY,
            f"sha256:{EMPTY[1:]}",
            f"sha256:{EMPTY}0",
            f"sha256:{EMPTY.upper()}",
            f"sha256:{EMPTY}\n",
            f" sha256:{EMPTY}",
            f"SHA256:{EMPTY}",
            f"sha256:{EMPTY[:-1]}g",
            f"sha256:{EMPTY[:-1]}٣",
            f"sha512:{EMPTY}",
            f"md5:{EMPTY[:32]}",
            f"sha256:{EMPTY[:32]}../../etc/passwd/aaaaaaaaaaaaaaa",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        """Only a registered algorithm and its exact number of lower-case hexadecimal characters are a digest."""
        with pytest.raises(InvalidDigest, match="is not a digest"):
            Digest.parse(text)

    def test_sha512_is_a_digest(self) -> None:
        """Both algorithms that the specification registers are read."""
        assert str(Digest.parse(f"sha512:{EMPTY}{EMPTY}")) == f"sha512:{EMPTY}{EMPTY}"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "sha256:",
            "sha256-",
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7",
            # e, o, u and t are not in the alphabet
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7e",
            # 52 characters hold 260 bits, of which 256 may be used
            "sha256:zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuF==",
            "sha256-47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha512-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        ],
    )
    def test_anything_else_is_no_nix_hash(self, text: str) -> None:
        """A hash that Nix would not print is refused, and nothing but InvalidDigest is raised."""
        with pytest.raises(InvalidDigest, match="is not a sha256 hash of Nix"):
            Digest.parse_nix(text)

    @pytest.mark.parametrize("value", [None, 1, b"sha256:00", ["sha256"]])
    def test_a_constructor_takes_texts(self, value: object) -> None:
        """A value of another type is not turned into a text."""
        with pytest.raises((InvalidDigest, TypeError)):
            Digest("sha256", value)  # type: ignore[arg-type]


class TestStorePath:
    HASH = "zrzmnkqhydmgsi8bwmmgx07w74jc6xvw"

    def test_parts(self) -> None:
        """A store path has a hash, a name and the name of its package."""
        path = StorePath.parse(f"/nix/store/{self.HASH}-curl-7.88.1-man")
        assert (path.hash, path.name, path.package_name) == (self.HASH, "curl-7.88.1-man", "curl")
        assert str(path) == f"/nix/store/{self.HASH}-curl-7.88.1-man"
        assert StorePath.parse(path.base) == path

    @pytest.mark.parametrize(
        ("name", "package"),
        [
            ("bash-5.2.15", "bash"),
            ("gcc-wrapper-12.3.0", "gcc-wrapper"),
            ("source", "source"),
            ("hello-unstable", "hello-unstable"),
            ("python3.11-six-1.16.0", "python3.11-six"),
            ("libfoo-2024-01-01", "libfoo"),
            ("nixos-system-x", "nixos-system-x"),
            ("a-", "a-"),
            ("foo--1", "foo"),
        ],
    )
    def test_package_name_ends_before_the_version(self, name: str, package: str) -> None:
        """The name is cut as builtins.parseDrvName cuts it: at the first dash before something that is no letter."""
        assert StorePath(self.HASH, name).package_name == package

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/",
            "/nix/store/",
            "/nix/store/x",
            f"/nix/store/{HASH}",
            f"/nix/store/{HASH}-",
            f"/nix/store/{HASH[1:]}-x",
            f"/nix/store/{HASH[1:]}e-x",
            f"/nix/store/{HASH.upper()}-x",
            f"/nix/store/{HASH}-a b",
            f"/nix/store/{HASH}-a/b",
            f"/nix/store/{HASH}-x/",
            f"/nix/store/{HASH}-x\n",
            f"/nix/store/{HASH}-é",
            f"/nix/store/{HASH}-..",
            f"/nix/store/{HASH}-{'n' * 212}",
            f"/gnu/store/{HASH}-x",
            f"//nix/store/{HASH}-x",
            f"/nix/store/../store/{HASH}-x",
            f"nix/store/{HASH}-x",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        """Whatever Nix itself would not call a store path in /nix/store is refused."""
        with pytest.raises(InvalidStorePath):
            StorePath.parse(text)

    def test_order_is_hash_then_name(self) -> None:
        """Store paths sort as Nix sorts them."""
        texts = [f"{'1' * 32}-a", f"{'0' * 32}-b", f"{'0' * 32}-a"]
        assert [path.base for path in sorted(map(StorePath.parse, texts))] == sorted(texts)

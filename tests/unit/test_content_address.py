"""Store paths that follow from their content: those that Nix made are understood, all else is refused."""

from __future__ import annotations

import attrs
import pytest

from nixery_core.errors import UntrustedPath
from nixery_core.model.digest import Digest
from nixery_core.model.storepath import StorePath
from nixery_core.stores.content_address import check_content_address, file_hash
from nixery_core.stores.narinfo import NarInfo

# made by Nix 2.8: nix-store --add-fixed [--recursive] sha256, and builtins.toFile
FILE = (
    "iixxin28s82lrxs8v4lcf7nha2dkwprm-hello.txt",
    "fixed:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
)
TREE = ("zbzzyh17ffxs9zaq2405d991yaq8bcm3-dir", "fixed:r:sha256:11yvwhz7prai41mjgl8fs4ccflqk3m7274xc9ds6yn1hj0gy534w")
TEXT = ("70cnzx6nvnlskmxj319fs9fwdbayxld5-t.txt", "text:sha256:0x84z5jxhhafpx5r0zf36j3aqllgv07x65rklhs7f86n8vnwj5m1")
REFERRER = (
    "pk2afigm8s5b58wcl7g3p30qbh7jx84g-u.txt",
    "text:sha256:1in147smyynbwpcrrc4xdnhyysvlz5pf370bp4dsd1a7a3gf8nw6",
)
SHA1 = ("bl4cpnz7cwz57jcydmc1ylp7y584axbs-hello.txt", "fixed:sha1:9m1skbnr5i43n3yypvda5s65vhfwdx5a")


def narinfo(base: str, content_address: str, *references: str) -> NarInfo:
    method, _, digest = content_address.partition(":sha256:")
    return NarInfo(
        store_path=StorePath.parse(base),
        url="nar/x.nar",
        nar_hash=Digest.parse_nix(f"sha256:{digest}") if method == "fixed:r" else Digest.of(b""),
        nar_size=120,
        references=tuple(map(StorePath.parse, references)),
        content_address=content_address,
    )


class TestPathsOfNix:
    @pytest.mark.parametrize(
        "info", [narinfo(*FILE), narinfo(*TREE), narinfo(*TEXT), narinfo(*REFERRER, TEXT[0])], ids=str
    )
    def test_each_kind_is_understood(self, info: NarInfo) -> None:
        """Files, trees and texts that Nix added follow from their content."""
        check_content_address(info)

    def test_the_hash_of_a_file_is_promised(self) -> None:
        """Files and texts are to be compared when their content is there; of a tree NarHash says it all."""
        assert file_hash(narinfo(*FILE)) == Digest.of(b"hello")
        assert file_hash(narinfo(*TEXT)) == Digest.of(b"plain")
        assert file_hash(narinfo(*TREE)) is None


class TestLies:
    @pytest.mark.parametrize(
        "info",
        [
            narinfo(FILE[0], TEXT[1]),
            narinfo(TEXT[0], FILE[1]),
            narinfo(FILE[0], FILE[1].replace("fixed:", "text:")),
            narinfo(FILE[0], FILE[1].replace("fixed:", "fixed:r:")),
            narinfo(FILE[0].replace("hello", "hallo"), FILE[1]),
            narinfo(*FILE, TEXT[0]),
            narinfo(*REFERRER),
            narinfo(*REFERRER, FILE[0]),
            narinfo(*TREE, TEXT[0]),
            attrs.evolve(narinfo(*TREE), nar_hash=Digest.of(b"other")),
        ],
        ids=str,
    )
    def test_nothing_can_be_changed(self, info: NarInfo) -> None:
        """Another name, method, hash, reference or archive gives another path, and is refused."""
        with pytest.raises(UntrustedPath) as caught:
            check_content_address(info)
        assert info.store_path.base in caught.value.message

    @pytest.mark.parametrize(
        "info",
        [
            attrs.evolve(narinfo(*FILE), content_address=SHA1[1]),
            attrs.evolve(narinfo(*FILE), content_address="fixed:git:sha256:" + "0" * 52),
            attrs.evolve(narinfo(*FILE), content_address="text:r:sha256:" + "0" * 52),
            attrs.evolve(narinfo(*FILE), content_address="fixed:sha256:zzzz"),
            narinfo(*TREE, TREE[0]),
        ],
        ids=str,
    )
    def test_what_is_not_understood_needs_a_signature(self, info: NarInfo) -> None:
        """Other hashes, other methods and paths that refer to themselves are never taken on trust."""
        with pytest.raises(UntrustedPath, match="not understood"):
            check_content_address(info)

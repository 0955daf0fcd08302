"""The table of platforms."""

from __future__ import annotations

import platform as machine

import pytest

from nixery_core.errors import InvalidPlatform
from nixery_core.model.platform import AMD64, ARM64, Platform

# GOARCH and GOARM of the Go documentation beside the systems of nixpkgs' lib.systems.flakeExposed and friends
TABLE = [
    ("x86_64-linux", "linux/amd64", "amd64", None),
    ("aarch64-linux", "linux/arm64", "arm64", None),
    ("i686-linux", "linux/386", "386", None),
    ("armv7l-linux", "linux/arm/v7", "arm", "v7"),
    ("armv6l-linux", "linux/arm/v6", "arm", "v6"),
    ("riscv64-linux", "linux/riscv64", "riscv64", None),
    ("powerpc64le-linux", "linux/ppc64le", "ppc64le", None),
    ("s390x-linux", "linux/s390x", "s390x", None),
    ("loongarch64-linux", "linux/loong64", "loong64", None),
    ("mips64el-linux", "linux/mips64le", "mips64le", None),
]


@pytest.mark.parametrize(("system", "oci", "architecture", "variant"), TABLE)
class TestTable:
    def test_system_and_platform_mean_the_same(
        self, system: str, oci: str, architecture: str, variant: str | None
    ) -> None:
        """A Nix system and its OCI platform are read as one value, and written as the OCI platform."""
        platform = Platform.parse(system)
        assert platform == Platform.parse(oci) == Platform.parse(oci.removeprefix("linux/"))
        assert (platform.system, str(platform)) == (system, oci)
        assert (platform.os, platform.architecture, platform.variant) == ("linux", architecture, variant)


class TestPlatform:
    def test_no_two_rows_mean_the_same(self) -> None:
        """Every system has a platform of its own."""
        platforms = [Platform.parse(system) for system, *_ in TABLE]
        assert len({str(platform) for platform in platforms}) == len({p.system for p in platforms}) == len(TABLE)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("arm64/v8", ARM64), ("linux/arm64/v8", ARM64), ("arm", Platform.parse("armv7l-linux")), ("amd64", AMD64)],
    )
    def test_other_spellings(self, text: str, expected: Platform) -> None:
        """What engines write for the same platform is understood."""
        assert Platform.parse(text) == expected

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("x86_64-darwin", "x86_64-linux"),
            ("linux/amd46", "linux/amd64"),
            ("", "x86_64-linux"),
            ("linux", "linux"),
            ("linux/", "linux"),
            ("linux/linux/amd64", "linux/amd64"),
            ("AMD64", "amd64"),
            ("windows/amd64", "linux/amd64"),
            ("linux/arm/v8", "linux/arm"),
        ],
    )
    def test_unknown_platform_names_near_ones(self, text: str, hint: str) -> None:
        """An unknown platform is an error that names what could have been meant."""
        with pytest.raises(InvalidPlatform) as caught:
            Platform.parse(text)
        assert hint in caught.value.hint

    def test_elf_machine_is_the_one_of_this_interpreter(self) -> None:
        """The number that tells foreign programs apart is right for the machine that the test runs on."""
        import sys
        from pathlib import Path

        known = {"x86_64": "x86_64-linux", "aarch64": "aarch64-linux", "riscv64": "riscv64-linux"}
        if machine.machine() not in known or sys.platform != "linux":
            pytest.skip("this machine is not in the table of the test")
        header = Path(sys.executable).read_bytes()[:20]
        assert Platform.parse(known[machine.machine()]).elf_machine == int.from_bytes(header[18:20], "little")

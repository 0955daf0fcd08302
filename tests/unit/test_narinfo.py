"""narinfo files: everything that Nix writes is read, and nothing that Nix would refuse."""

import pytest

from nixery_core.errors import InvalidDocument
from nixery_core.model.storepath import StorePath
from nixery_core.stores.narinfo import NarInfo

# made by `nix copy --to file://...?secret-key=...` (Nix 2.8)
REAL = b"""StorePath: /nix/store/zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15
URL: nar/1qm2xr9qvddyydjmbic2bg8aqi8cd6vqsp2vshzbd396diz2ddns.nar.zst
Compression: zstd
FileHash: sha256:1qm2xr9qvddyydjmbic2bg8aqi8cd6vqsp2vshzbd396diz2ddns
FileSize: 650737
NarHash: sha256:028hjj7dmh3g0klzlx12mkkm2irh7byhf1k2gb774asay83in8sb
NarSize: 1360736
References: 2jbjf45slgbqwcxxq5vdhzjayrlhnvsa-glibc-2.36 hnf1dbzrkva5znzlxs87kwfb1c7ppx3p-libtinfo6-6.4 \
zrzmnkqhydmgsi8bwmmgx07w74jc6xvw-bash-5.2.15
Deriver: bw2xfxxr8zlwx1my2kiq6w9hbdvcia51-bash-5.2.15.drv
Sig: lab-1:UD2rLDkdnDJy47KwKyhpnfM/rCEPdsxezJwLj+kt2ptc0PuLDDnwxdjad2uLRLkF52R+q81/4PZjjBsEJs+gBA==
"""


def without(field: str) -> bytes:
    return b"".join(line for line in REAL.splitlines(keepends=True) if not line.startswith(field.encode() + b":"))


class TestReading:
    def test_every_field_of_a_real_file(self):
        """What nix copy wrote is read field by field."""
        info = NarInfo.parse(REAL)
        assert info.store_path == StorePath("zrzmnkqhydmgsi8bwmmgx07w74jc6xvw", "bash-5.2.15")
        assert info.url == "nar/1qm2xr9qvddyydjmbic2bg8aqi8cd6vqsp2vshzbd396diz2ddns.nar.zst"
        assert (info.compression, info.file_size, info.nar_size) == ("zstd", 650737, 1360736)
        assert info.file_hash.to_nix() == "sha256:1qm2xr9qvddyydjmbic2bg8aqi8cd6vqsp2vshzbd396diz2ddns"
        assert info.nar_hash.to_nix() == "sha256:028hjj7dmh3g0klzlx12mkkm2irh7byhf1k2gb774asay83in8sb"
        assert [path.name for path in info.references] == ["glibc-2.36", "libtinfo6-6.4", "bash-5.2.15"]
        assert info.deriver.name == "bash-5.2.15.drv"
        assert len(info.signatures) == 1
        assert (info.content_address, info.unknown) == (None, ())

    def test_a_real_file_is_written_as_it_was(self):
        """Reading and writing gives the same bytes."""
        assert NarInfo.parse(REAL).to_bytes() == REAL

    def test_what_a_cache_may_leave_out(self):
        """Without compression bzip2 is meant; no references, no deriver and no file facts are allowed."""
        data = REAL
        for field in ("Compression", "FileHash", "FileSize", "Deriver", "Sig"):
            data = b"".join(row for row in data.splitlines(keepends=True) if not row.startswith(field.encode() + b":"))
        data = data.split(b"References:")[0] + b"References: \nDeriver: unknown-deriver\n"
        info = NarInfo.parse(data)
        assert (info.compression, info.file_hash, info.file_size, info.deriver) == ("bzip2", None, None, None)
        assert (info.references, info.signatures) == ((), ())

    def test_signatures_repeat_and_unknown_fields_are_kept(self):
        """Several signatures, a content address and fields of later versions are all there, in order."""
        data = REAL + b"Sig: two:AA==\nCA: fixed:r:sha256:x\nSystem: x86_64-linux\nNote:\n"
        info = NarInfo.parse(data)
        assert [signature.partition(":")[0] for signature in info.signatures] == ["lab-1", "two"]
        assert info.content_address == "fixed:r:sha256:x"
        assert info.unknown == (("System", "x86_64-linux"), ("Note", ""))
        assert NarInfo.parse(info.to_bytes()) == info

    def test_paths_are_shared(self):
        """Paths that were parsed before are the same objects: a walk of many files parses each once."""
        known = {}
        first, second = NarInfo.parse(REAL, known=known), NarInfo.parse(REAL, known=known)
        assert all(a is b for a, b in zip(first.references, second.references, strict=True))
        assert first.references[2] is first.store_path


class TestRefusing:
    @pytest.mark.parametrize("field", ["StorePath", "URL", "NarHash", "NarSize"])
    def test_a_missing_field_is_named(self, field):
        """Each field that Nix requires is required, and the error names file and field."""
        with pytest.raises(InvalidDocument, match=rf"^x\.narinfo has no {field}"):
            NarInfo.parse(without(field), where="x.narinfo")

    @pytest.mark.parametrize("end", [1, 40, 200, len(REAL) - 1])
    def test_a_file_that_was_cut_short(self, end):
        """A torn file never looks like a whole one that knows less."""
        with pytest.raises(InvalidDocument, match="cut short"):
            NarInfo.parse(REAL[:end])

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (b"NarSize: 1360736", b"NarSize: -1", "NarSize is not a number"),
            (b"NarSize: 1360736", b"NarSize: 0", "NarSize is 0"),
            (b"NarSize: 1360736", b"NarSize: \xd9\xa3", "NarSize is not a number"),
            (b"FileSize: 650737", b"FileSize: 6e5", "FileSize is not a number"),
            (b"NarHash: sha256:0", b"NarHash: md5:0", "NarHash: .* is not a sha256"),
            (b"/nix/store/zrz", b"/gnu/store/zrz", "StorePath: .* is not a path in /nix/store"),
            (b"/nix/store/zrz", b"zrz", "StorePath is not a full path"),
            (b"2jbjf45s", b"/nix/store/2jbjf45s", "References: .* is not the base name"),
            (b"2jbjf45s", b"2jbjf45", "References: .* does not name a store path"),
            (b"bw2xfxxr", b"ew2xfxxr", "Deriver: .* does not name a store path"),
            (b"Compression: zstd", b"Compression: zstd\nCompression: xz", "Compression stands twice"),
            (b"Compression: zstd", b"<html>", "line 3 is not 'Name: value' but '<html>'"),
            (b"Compression: zstd", b"Compression: \xff", "not UTF-8"),
        ],
    )
    def test_a_damaged_field_is_named(self, old, new, message):
        """The error says which field is wrong and what stands there."""
        with pytest.raises(InvalidDocument, match=message):
            NarInfo.parse(REAL.replace(old, new, 1))

    def test_a_page_of_a_web_server(self):
        """The page of a proxy or of a missing file is no narinfo."""
        with pytest.raises(InvalidDocument):
            NarInfo.parse(b"<html><body>404 Not Found</body></html>\n")

"""What an image is asked to be."""

import datetime
import pickle

import attrs
import pytest

from nixery_core.errors import InvalidConfig, InvalidName, InvalidTag
from nixery_core.model.image import CustomFile, ImageSpec
from nixery_core.model.oci import ContainerConfig
from nixery_core.model.platform import AMD64, ARM64


class TestImageSpec:
    def test_packages_are_canonical(self):
        """Order and repetition make no other image, and no other identity."""
        one = ImageSpec(packages=["b", "a", "b"])
        other = ImageSpec(packages=("a", "b"))
        assert one == other
        assert one.identity() == other.identity()

    def test_a_text_in_the_place_of_a_list_is_refused(self):
        """`packages="git"` does not silently mean g, i and t."""
        with pytest.raises(InvalidName, match="the text 'git'"):
            ImageSpec(packages="git")

    def test_an_image_needs_a_package(self):
        """Nothing is no image."""
        with pytest.raises(InvalidName, match="at least one"):
            ImageSpec(packages=[])

    def test_the_default_name_fits_the_grammar(self):
        """Attributes that no image name can spell still give the image a name."""
        spec = ImageSpec(packages=["python3Packages.six", "_1password"])
        assert spec.name == "1password/python3packages.six"

    def test_a_bad_tag_is_refused(self):
        """A malformed tag is found before anything is started."""
        with pytest.raises(InvalidTag):
            ImageSpec.parse("git", tag="a/b")

    def test_platform_of_the_call(self):
        """The call may name the platform, unless the name says another."""
        assert ImageSpec.parse("git").platform == AMD64
        assert ImageSpec.parse("git", platform=ARM64).platform == ARM64
        assert ImageSpec.parse("arm64/git", platform=ARM64).platform == ARM64
        with pytest.raises(InvalidName, match="linux/arm64"):
            ImageSpec.parse("arm64/git", platform=AMD64)

    def test_implied_packages_are_optional(self):
        """Cacert and iana-etc come in where the set has them, and can be left out."""
        assert set(ImageSpec.parse("git").optional) == {"cacert", "iana-etc"}
        assert ImageSpec.parse("git", implied=()).optional == ()

    @pytest.mark.parametrize(
        "change",
        [
            {"packages": ["git", "htop"]},
            {"optional": ["x"]},
            {"platform": ARM64},
            {"config": ContainerConfig(user="app")},
            {"created": "2024-05-31T12:00:00Z"},
            {"files": [CustomFile(path="/etc/motd", content=b"hi")]},
        ],
    )
    def test_whatever_changes_the_image_changes_the_identity(self, change):
        """No two different images share an identity."""
        spec = ImageSpec.parse("git")
        assert attrs.evolve(spec, **change).identity() != spec.identity()

    def test_the_tag_is_not_part_of_the_identity(self):
        """Two tags of one revision are one image."""
        assert ImageSpec.parse("git", tag="v1").identity() == ImageSpec.parse("git", tag="main").identity()

    def test_pickles(self):
        """A specification travels to other processes."""
        spec = ImageSpec.parse("arm64/shell/git", tag="v1", files=[CustomFile(path="/x", target="/y")])
        assert pickle.loads(pickle.dumps(spec)) == spec

    def test_created_is_utc_text(self):
        """A datetime is written as RFC 3339 in UTC; without a zone it says nothing."""
        zone = datetime.timezone(datetime.timedelta(hours=2))
        spec = ImageSpec.parse("git", created=datetime.datetime(2024, 5, 31, 14, tzinfo=zone))
        assert spec.created == "2024-05-31T12:00:00Z"
        with pytest.raises(InvalidConfig, match="time zone"):
            ImageSpec.parse("git", created=datetime.datetime(2024, 5, 31))
        for text in ("yesterday", "2024-05-31", "2024-05-31T12:00:00", ""):
            with pytest.raises(InvalidConfig, match="RFC 3339"):
                ImageSpec.parse("git", created=text)


class TestRunConfig:
    @pytest.mark.parametrize(
        "config",
        [
            {"env": ("novalue",)},
            {"env": ("=x",)},
            {"env": ("A=\0",)},
            {"exposed_ports": ("0",)},
            {"exposed_ports": ("65536",)},
            {"exposed_ports": ("80/icmp",)},
            {"volumes": ("data",)},
            {"working_dir": "src"},
            {"stop_signal": "TERM"},
            {"user": "Not A User"},
            {"user": "a:b:c"},
            {"cmd": ("a\0b",)},
        ],
    )
    def test_what_an_engine_would_refuse_is_refused_early(self, config):
        """A value that no engine takes is found before anything is built."""
        with pytest.raises(InvalidConfig):
            ImageSpec.parse("git", config=ContainerConfig(**config))

    def test_what_engines_take_is_taken(self):
        """Every field of the run configuration has a valid form."""
        config = ContainerConfig(
            env=("A=", "B=1=2"),
            exposed_ports=("80", "53/udp"),
            volumes=("/data",),
            working_dir="/src",
            stop_signal="SIGRTMIN+3",
            user="app:1000",
            cmd=("sh", "-c", "true"),
        )
        assert ImageSpec.parse("git", config=config).config == config


class TestCustomFile:
    @pytest.mark.parametrize(
        "path", ["", "etc", "/", "/a/", "/a/../b", "/./a", "//a", "/a\0", "/nix/store/x", "/nix/store"]
    )
    def test_paths_that_could_hurt_are_refused(self, path):
        """A custom file has a plain absolute path outside the Nix store."""
        with pytest.raises(InvalidConfig):
            CustomFile(path=path, content=b"")

    def test_a_file_is_no_link(self):
        """Content and target exclude each other."""
        with pytest.raises(InvalidConfig, match="both"):
            CustomFile(path="/x", content=b"", target="/y")

    @pytest.mark.parametrize("change", [{"mode": 0o10000}, {"mode": -1}, {"uid": -1}, {"gid": -1}])
    def test_bad_attributes_are_refused(self, change):
        """Modes and owners are what a tar header can say."""
        with pytest.raises(InvalidConfig):
            CustomFile(path="/x", content=b"", **change)

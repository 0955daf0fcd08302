"""A batch is the same as its images one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_core.builder import ImageBuilder
from nixery_core.model.image import ImageSpec
from nixery_core.model.storepath import StorePath
from nixery_core.sources import Pin
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.memory_realiser import MemoryPackage, MemoryRealiser

NAMES = "abcdfg"


class Source:
    def pin(self, tag):
        return Pin(kind="memory", url="https://example.org/set", revision="r1", fetch={})


@st.composite
def realisers(draw):
    """Packages that refer to packages before them, some of which cannot be archived."""
    paths = {name: StorePath(name * 32, f"{name}-1") for name in NAMES}
    packages = {}
    for number, name in enumerate(NAMES):
        references = draw(st.sets(st.sampled_from(NAMES[:number]))) if number else set()
        good = draw(st.integers(0, 4))
        tree = {"bin": {name: name.encode() * 50}} if good else {"..": b"not a name"}
        packages[name] = MemoryPackage(
            path=paths[name], tree=tree, references=tuple(paths[other] for other in sorted(references))
        )
    return MemoryRealiser(packages)


specs = st.lists(
    st.sets(st.sampled_from([*NAMES, "missing"]), min_size=1, max_size=3).map(lambda names: ImageSpec(packages=names)),
    max_size=6,
)


@given(realisers(), specs, st.integers(1, 4), st.sampled_from([1, 2, 94]), st.uuids())
@settings(max_examples=60, deadline=None)
def test_a_batch_equals_its_images_one_by_one(realiser, wanted, at_once, budget, unique):
    """The same images with the same digests, and errors of the same kind, for every batch."""

    def builder(where):
        return ImageBuilder(
            Source(), open_backend(f"memory://{unique}-{where}"), realiser=realiser, budget=budget, workers=2
        )

    results = list(builder("batch").build_many(wanted, at_once=at_once))
    assert sorted(result.index for result in results) == list(range(len(wanted)))
    alone = builder("alone")
    for result in results:
        assert result.spec == wanted[result.index]
        (single,) = alone.build_many([result.spec])
        assert (result.image is None) == (single.image is None)
        assert type(result.error) is type(single.error)
        if result.image is not None:
            assert result.image.descriptor == single.image.descriptor
            assert result.image.descriptor == alone.build(result.spec).descriptor

"""An image as it is put together on the page: what the address of the page says of it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence

import attrs

from nixery_core.errors import InputError, InvalidName
from nixery_core.model.names import META_PACKAGES, check_attribute, check_name, check_tag

MOST_PACKAGES = 100
PLATFORM_WORDS = tuple(word for word, meta in META_PACKAGES.items() if meta.platform is not None)
"""What a name can begin with to ask for a platform."""


@attrs.frozen(kw_only=True)
class Composition:
    """Packages and the rest of what an image is asked to be, as typed by somebody."""

    packages: tuple[str, ...] = ()
    """As they are written in image names; distinct, in the order in which they were added."""
    shell: bool = False
    """Whether a shell and the usual tools are asked for."""
    platform: str = ""
    """One of PLATFORM_WORDS, or empty for what the registry does without one."""
    tag: str = "latest"
    problem: str = ""
    """What is wrong with what was typed last, for a person."""

    @property
    def name(self) -> str:
        """The name of the image; empty where nothing is chosen yet."""
        words = [self.platform] if self.platform else []
        words += ["shell"] if self.shell else []
        return "/".join([*words, *self.packages]) if self.shell or self.packages else ""

    def query(self, **changes: object) -> str:
        """Return the query of the page's address, with some fields changed."""
        changed = attrs.evolve(self, **changes)  # type: ignore[arg-type]
        pairs = [("p", package) for package in changed.packages]
        pairs += [("shell", "1")] if changed.shell else []
        pairs += [("platform", changed.platform)] if changed.platform else []
        pairs += [("tag", changed.tag)] if changed.tag != "latest" else []
        return urllib.parse.urlencode(pairs)


def read_composition(query: Mapping[str, Sequence[str]]) -> Composition:
    """Return what the parameters of a query say; what makes no sense is left out, and named.

    >>> composition = read_composition({"p": ["git"], "add": ["python3Packages.numpy htop"], "shell": ["1"]})
    >>> composition.name
    'shell/git/python3packages.numpy/htop'
    >>> read_composition({"add": ["a b!"]}).problem
    "'b!' is not the name of a package (a package is an attribute path such as git or python3Packages.numpy)"
    """
    packages: dict[str, None] = {}
    problems: list[str] = []
    shell = query.get("shell", [""])[0] == "1"
    platform = query.get("platform", [""])[0]
    typed = [word for text in query.get("add", ()) for word in re.split(r"[\s,/]+", text.strip()) if word]
    for word in [*query.get("p", ()), *typed]:
        if word == "shell":
            shell = True
        elif word in PLATFORM_WORDS:
            platform = word
        else:
            try:
                packages[image_word(word)] = None
            except InputError as error:
                problems.append(str(error))
    for word in query.get("remove", ()):
        packages.pop(word, None)
    tag = query.get("tag", [""])[0].strip() or "latest"
    try:
        check_tag(tag)
    except InputError as error:
        problems.append(str(error))
        tag = "latest"
    composition = Composition(
        packages=tuple(packages)[:MOST_PACKAGES],
        shell=shell,
        platform=platform if platform in PLATFORM_WORDS else "",
        tag=tag,
        problem=" ".join(problems),
    )
    try:
        if composition.name:
            check_name(composition.name)
    except InputError as error:
        return attrs.evolve(composition, problem=str(error), packages=composition.packages[:-1])
    return composition


def image_word(attribute: str) -> str:
    """Return an attribute path as it is written in image names; raises InvalidName.

    >>> image_word("_1password")
    '1password'
    """
    word = check_attribute(attribute).lower().lstrip("_")
    if not word:
        raise InvalidName(f"{attribute!r} is not the name of a package")
    return check_name(word)

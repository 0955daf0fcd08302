"""The packages of the demo: the ones of nix/demo that need no compiler and no tools of the machine."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from nixery_core.demo._nar import Program, Tree, nar_bytes
from nixery_core.demo._program import printing_program
from nixery_core.errors import ProblemKind
from nixery_core.index.entry import IndexEntry
from nixery_core.model.digest import Digest
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.stores.content_address import content_addressed_path


@attrs.frozen(kw_only=True)
class DemoPath:
    """A store path of the demo."""

    path: StorePath
    nar: bytes = attrs.field(repr=False)
    references: tuple[StorePath, ...]

    @property
    def content_address(self) -> str:
        """How the store path follows from its content and its references."""
        return f"fixed:r:{Digest.of(self.nar).to_nix()}"


class DemoSet:
    """The packages for one platform, and every store path that they consist of."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.paths: dict[StorePath, DemoPath] = {}
        self.entries: dict[str, IndexEntry] = {}
        self._fill()

    def _add(self, name: str, tree: Tree, references: Iterable[StorePath] = ()) -> StorePath:
        """Return the store path of *tree*: it is named by its content, so nobody has to vouch for it."""
        nar = nar_bytes(tree)
        referred = tuple(sorted(references))
        # Nix does not see references that are not in the content
        assert all(path.hash.encode() in nar for path in referred)
        path = content_addressed_path("fixed:r", Digest.of(nar), name, referred)
        self.paths[path] = DemoPath(path=path, nar=nar, references=referred)
        return path

    def _package(self, attribute: str, version: str, *, priority: int = 5, **outputs: StorePath) -> StorePath:
        install = tuple(name for name in outputs if name != "dev")
        self.entries[attribute] = IndexEntry(outputs=outputs, install=install, version=version, priority=priority)
        return outputs["out"]

    def _text(
        self, pname: str, version: str, file: str, text: str, references: Iterable[StorePath] = (), attribute: str = ""
    ) -> StorePath:
        tree: Tree = f"{text}\n".encode()
        for component in reversed(file.split("/")):
            tree = {component: tree}
        out = self._add(f"{pname}-{version}", tree, references)
        return self._package(attribute or pname, version, out=out)

    def _program(self, pname: str, version: str, source: StorePath, file: str) -> StorePath:
        program = Program(printing_program(f"{source}/{file}", self._platform))
        out = self._add(f"{pname}-{version}", {"bin": {pname: program}}, [source])
        return self._package(pname, version, out=out)

    def _editor(self, size: str, priority: int) -> None:
        pname = f"editor-{size}"
        text = self._add(f"{pname}-text-1.0", {"share": {pname: {"text": f"the {size} editor\n".encode()}}})
        program = Program(printing_program(f"{text}/share/{pname}/text", self._platform))
        self._package(
            pname, "1.0", priority=priority, out=self._add(f"{pname}-1.0", {"bin": {"editor": program}}, [text])
        )

    def _fill(self) -> None:
        # data that others share
        alphabet = self._text("alphabet", "26", "share/alphabet/letters", "abcdefghijklmnopqrstuvwxyz")
        words = f"hello\nwelcome\n# letters: {alphabet}"
        dictionary = self._text("dictionary", "2024.1", "share/dictionary/words", words, [alphabet])
        greeting = self._add(
            "greeting-1.2",
            {
                "share": {
                    "greeting": {
                        "hello": b"Hello, world!\n",
                        "welcome": b"Welcome to the machine.\n",
                        "dictionary": f"{dictionary}\n".encode(),
                    }
                }
            },
            [dictionary],
        )
        self._package("greeting", "1.2", out=greeting)
        phrases = f"{greeting}/share/greeting\n{dictionary}/share/dictionary"
        phrasebook = self._text("phrasebook", "3.0", "share/phrasebook/phrases", phrases, [greeting, dictionary])

        # programs that run with nothing but their closure
        self._program("hello", "1.0", greeting, "share/greeting/hello")
        self._program("welcome", "1.0", greeting, "share/greeting/welcome")
        self._program("lookup", "0.4", dictionary, "share/dictionary/words")

        # several outputs, of which two are installed
        toolbox = Program(printing_program(f"{phrasebook}/share/phrasebook/phrases", self._platform))
        out = self._add("toolbox-5.1", {"bin": {"toolbox": toolbox}}, [phrasebook])
        manual = {"share": {"man": {"man1": {"toolbox.1": b".TH TOOLBOX 1\n"}}}}
        header = {"include": {"toolbox.h": f"/* {out} */\n".encode()}}
        self._package(
            "toolbox", "5.1", out=out, man=self._add("toolbox-5.1-man", manual),
            dev=self._add("toolbox-5.1-dev", header, [out]),
        )  # fmt: skip

        # two packages with one file name: the lower priority wins
        self._editor("small", 4)
        self._editor("large", 5)

        # names that an image name cannot spell
        self._text("upper", "1", "share/upper", "upper", attribute="Upper")
        self._text("1name", "1", "share/1name", "one", attribute="_1name")
        inner = f"inner of {alphabet}"
        self._text("inner", "1", "share/inner", inner, [alphabet], attribute="demoPackages.inner")

        # what a package set can refuse
        for attribute, problem in (
            ("broken", ProblemKind.BROKEN),
            ("insecure", ProblemKind.INSECURE),
            ("unfree", ProblemKind.UNFREE),
            ("unsupported", ProblemKind.UNSUPPORTED_PLATFORM),
        ):
            self.entries[attribute] = IndexEntry(problem=problem, version="1.0")

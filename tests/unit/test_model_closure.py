"""Closures from everything that Nix prints about them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from nixery_core.errors import InvalidClosure
from nixery_core.model.closure import Closure, PathInfo
from nixery_core.model.storepath import StorePath

GOLDEN = Path(__file__).parents[1] / "golden"
A, B, C = (f"/nix/store/{letter * 32}-{letter}-1" for letter in "abc")


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def row(path: str, *references: str, **extra: object) -> dict[str, object]:
    return {"path": path, "narSize": 96, "references": list(references), **extra}


class TestWhatNixPrints:
    def test_list_and_object_are_the_same_closure(self) -> None:
        """The list of Nix 2.8 and the object of newer versions give equal closures."""
        old, new = golden("nix-path-info-list.json"), golden("nix-path-info-object.json")
        assert isinstance(old["answer"], list)
        assert isinstance(new["answer"], dict)
        closure = Closure.from_path_info(old["answer"], old["roots"])
        assert closure == Closure.from_path_info(new["answer"], new["roots"])
        assert [root.package_name for root in closure.roots] == ["editor-small", "toolbox", "lookup"]
        assert closure.nar_size == sum(entry["narSize"] for entry in old["answer"])

    def test_reference_graph_is_the_same_closure(self) -> None:
        """The graph that a build is given, with its hashes in base 32, is equal to the answer of path-info."""
        info = golden("nix-path-info-list.json")
        graph = Closure.from_reference_graph(golden("nix-reference-graph.json"))
        assert graph == Closure.from_path_info(info["answer"], info["roots"])
        assert all(path.nar_hash is not None for path in graph)

    def test_order_of_the_answer_carries_no_meaning(self) -> None:
        """A closure does not depend on the order in which Nix lists paths, references or roots."""
        info = golden("nix-path-info-list.json")
        rows = [{**entry, "references": entry["references"][::-1]} for entry in reversed(info["answer"])]
        assert Closure.from_path_info(rows, info["roots"][::-1]) == Closure.from_path_info(
            info["answer"], info["roots"]
        )

    def test_reference_to_itself_is_kept_and_is_no_cycle(self) -> None:
        """A path that refers to itself says so, and is ordered like any other."""
        info = golden("nix-path-info-list.json")
        closure = Closure.from_path_info(info["answer"], info["roots"])
        (editor,) = [path for path in closure if path.path.package_name == "editor-small"]
        assert editor.path in editor.references
        assert len(closure.topological()) == len(closure)

    def test_hash_may_be_missing(self) -> None:
        """An origin that tells no NAR hash still gives a closure."""
        assert next(iter(Closure.from_path_info([row(A)], [A]))).nar_hash is None


class TestClosure:
    def test_references_come_first_in_topological_order(self) -> None:
        """Every path stands after all that it refers to."""
        closure = Closure.from_path_info([row(A, B, A), row(B, C), row(C)], [A])
        assert [str(path) for path in closure.topological()] == [C, B, A]

    def test_look_up(self) -> None:
        """A closure is a sized, iterable collection of facts by path."""
        closure = Closure.from_path_info([row(A, B), row(B)], [A])
        path = StorePath.parse(A)
        assert path in closure
        assert StorePath.parse(C) not in closure
        assert A not in closure
        assert closure[path].references == (StorePath.parse(B),)
        assert [str(info.path) for info in closure] == [A, B]
        with pytest.raises(KeyError):
            closure[StorePath.parse(C)]

    def test_pickles(self) -> None:
        """A closure goes to another process and comes back equal."""
        closure = Closure.from_path_info([row(A, B), row(B)], [A])
        assert pickle.loads(pickle.dumps(closure)) == closure
        assert copy.copy(closure) == closure

    def test_is_frozen(self) -> None:
        """No fact of a closure can be changed behind the back of who holds it."""
        closure = Closure.from_path_info([row(A)], [A])
        with pytest.raises(AttributeError):
            closure.paths = ()  # type: ignore[misc]

    def test_equal_rows_count_once(self) -> None:
        """A path that stands twice with equal facts is one path."""
        assert len(Closure.from_path_info([row(A), row(A)], [A])) == 1

    def test_deep_closures_need_no_recursion(self) -> None:
        """A chain of thousands of references is no problem for the stack."""
        alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
        chain = [
            f"/nix/store/{'0' * 28}{''.join(alphabet[n >> s & 31] for s in (15, 10, 5, 0))}-x" for n in range(5000)
        ]
        rows = [row(path, *chain[n + 1 : n + 2]) for n, path in enumerate(chain)]
        assert len(Closure.from_path_info(rows, chain[:1]).topological()) == 5000


BAD = [
    ("nothing", None, "list or object, not NoneType"),
    ("a text", "[]", "list or object, not str"),
    ("a row that is no object", [1], "JSON object, not int"),
    ("no path", [{"narSize": 1, "references": []}], "path is a text, not None"),
    ("no size", [{"path": A, "references": []}], "narSize is a number of bytes, not None"),
    ("a size as text", [row(A) | {"narSize": "96"}], "narSize is a number of bytes, not '96'"),
    ("a size as truth", [row(A) | {"narSize": True}], "narSize is a number of bytes, not True"),
    ("a size with a fraction", [row(A) | {"narSize": 96.0}], "narSize is a number of bytes, not 96.0"),
    ("a negative size", [row(A) | {"narSize": -1}], "narSize is a number of bytes, not -1"),
    ("no references", [{"path": A, "narSize": 1}], "references is a list of store paths, not None"),
    ("references as text", [row(A) | {"references": A}], "references is a list of store paths"),
    ("a reference that is a number", [row(A) | {"references": [1]}], "reference is a text, not 1"),
    ("a reference elsewhere", [row(A, "/usr/bin/env")], "is not a path in /nix/store"),
    ("a dangling reference", [row(A, B)], "which is not in the closure"),
    ("two sizes", [row(A), row(A) | {"narSize": 97}], "stands twice with different facts"),
    ("a cycle", [row(A, B), row(B, A)], "in a cycle"),
    ("a hash of another kind", [row(A, narHash="md5:00")], "is not a sha256 hash of Nix"),
    ("a hash that is a number", [row(A, narHash=5)], "narHash is a text, not 5"),
    ("an unknown path", {A: None}, f"Nix does not know {A}"),
    ("a path that is not valid", [row(A, valid=False)], f"Nix does not know {A}"),
    ("a file of another store", [row("/gnu/store/x")], "is not a path in /nix/store"),
]


class TestWhatIsRefused:
    @pytest.mark.parametrize(("document", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
    def test_answer(self, document: object, expected: str) -> None:
        """An answer of another form raises InvalidClosure that names the entry, and nothing else."""
        with pytest.raises(InvalidClosure) as caught:
            Closure.from_path_info(document, [A])
        assert expected in caught.value.message

    def test_missing_root(self) -> None:
        """A closure without one of its roots is none."""
        with pytest.raises(InvalidClosure, match="is not in the closure"):
            Closure.from_path_info([row(A)], [B])

    @pytest.mark.parametrize(
        "document",
        [
            None,
            [],
            {},
            {"graph": []},
            {"graph": [], "exportReferencesGraph": {}},
            {"graph": [], "exportReferencesGraph": []},
            {"graph": {}, "exportReferencesGraph": {"graph": [A]}},
            {"graph": [row(A)], "exportReferencesGraph": {"graph": [1]}},
            {"graph": [row(A)], "exportReferencesGraph": {"graph": [[A]]}},
            {"other": [row(A)], "exportReferencesGraph": {"other": [A]}},
        ],
    )
    def test_reference_graph(self, document: object) -> None:
        """A document without a whole graph raises InvalidClosure, and nothing else."""
        with pytest.raises(InvalidClosure):
            Closure.from_reference_graph(document)

    def test_a_path_twice_in_the_constructor(self) -> None:
        """Two entries of one path are refused, also where they are made by hand."""
        info = PathInfo(StorePath.parse(A), 1, ())
        with pytest.raises(InvalidClosure, match="stands twice"):
            Closure([info, PathInfo(StorePath.parse(A), 2, ())], [])

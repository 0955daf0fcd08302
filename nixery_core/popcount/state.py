"""What a walk has found so far, in a file: whatever ends the walk, the next one goes on there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from nixery_core._redact import redact
from nixery_core.errors import InvalidConfig, StorageError, StorageFull
from nixery_core.model.storepath import StorePath
from nixery_core.popcount.counting import PathFacts

FORMAT_VERSION = 1

# ASCII "nixp": tells our file from the database of another program
_APPLICATION = 0x6E697870
_HINT = "name another file with --state, or remove this one"


class WalkState:
    """Keeps facts of store paths in an SQLite database, each as soon as it is found.

    However the program ends, what was kept is there; a power cut may cost the last of it, but the
    file stays whole.  Facts stay true, so a later walk of the same cache from other roots asks only
    for what is new.

    Args:
        file: The database; it is made if there is none.
        caches: The binary caches that are walked, in order; what others told is not mixed in.

    Raises:
        InvalidConfig: The file is something else, or of other caches.
        StorageError: It cannot be read or written, or another program uses it.
    """

    def __init__(self, file: str | os.PathLike[str], caches: Sequence[str]) -> None:
        self._file = Path(file)
        with self._mapped():
            # nobody can wait here for the hours that another walk may take
            self._database = sqlite3.connect(self._file, timeout=0, isolation_level=None)
        try:
            with self._mapped():
                self._prepare(" ".join(redact(url).rstrip("/") for url in caches))
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._mapped():
            self._database.close()

    def facts(self) -> dict[StorePath, PathFacts]:
        """Return all that is known; raises StorageError."""
        parsed: dict[str, StorePath] = {}

        def path(base: str) -> StorePath:
            found = parsed.get(base)
            return found if found is not None else parsed.setdefault(base, StorePath.parse(base))

        with self._mapped():
            rows = self._database.execute("SELECT path, deriver, refs FROM facts ORDER BY path")
            facts = (
                PathFacts(path(own), tuple(map(path, references.split())), path(deriver) if deriver else None)
                for own, deriver, references in rows
            )
            return {fact.path: fact for fact in facts}

    def keep(self, fact: PathFacts) -> None:
        """Add what is known of a path; raises StorageError."""
        deriver = fact.deriver.base if fact.deriver else None
        references = " ".join(path.base for path in fact.references)
        with self._mapped():
            self._database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (fact.path.base, deriver, references)
            )

    def _prepare(self, caches: str) -> None:
        ask = self._database.execute
        # held until the end: two walks would only do the same work twice
        ask("PRAGMA locking_mode = EXCLUSIVE")
        ask("BEGIN EXCLUSIVE")
        if not ask("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            ask(f"PRAGMA application_id = {_APPLICATION}")
            ask(f"PRAGMA user_version = {FORMAT_VERSION}")
            ask("CREATE TABLE caches (urls TEXT NOT NULL)")
            ask("INSERT INTO caches VALUES (?)", (caches,))
            ask("CREATE TABLE facts (path TEXT PRIMARY KEY, deriver TEXT, refs TEXT NOT NULL) WITHOUT ROWID")
        elif ask("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise InvalidConfig(f"{self._file} is the database of another program", hint=_HINT)
        elif ask("PRAGMA user_version").fetchone()[0] != FORMAT_VERSION:
            raise InvalidConfig(f"{self._file} was made by another version of nixery-core", hint=_HINT)
        ((kept,),) = ask("SELECT urls FROM caches").fetchall()
        if kept != caches:
            raise InvalidConfig(f"{self._file} holds what {kept} told, not {caches}", hint=_HINT)
        ask("COMMIT")
        # a fact is one write at the end of a log, which the system brings to the disk when it likes
        ask("PRAGMA journal_mode = WAL")
        ask("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: sqlite3.Error) -> StorageError | InvalidConfig:
        name = getattr(error, "sqlite_errorname", "")
        message = f"the state {self._file}: {error}"
        if name == "SQLITE_NOTADB":
            return InvalidConfig(message, hint=_HINT)
        if name.startswith("SQLITE_CORRUPT"):
            return StorageError(message, hint="remove it; what it holds is fetched again")
        if name.startswith("SQLITE_BUSY"):
            return StorageError(message, hint="another popcount uses it: wait for that, or name another file")
        if name == "SQLITE_FULL":
            return StorageFull(message, hint="free some space, then run it again: it goes on where it was")
        return StorageError(message, hint="check the folder and the access rights")

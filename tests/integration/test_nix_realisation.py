"""A real Nix builds packages, holds them, and lets go of everything."""

from __future__ import annotations

import pickle
import subprocess
import threading
import time
from pathlib import Path

import attrs
import pytest

from nixery_core.cancellation import Cancellation
from nixery_core.errors import Cancelled, NixBuildError, NixTimeout
from nixery_core.events import BuildEvent, NixBuildStarted, NixLogLine, NixProgress
from nixery_core.model.package import ResolvedPackage
from nixery_core.model.platform import AMD64
from nixery_core.nix import Nix
from nixery_core.nix.demo import demo_nix
from nixery_core.sources import LocalPath
from nixery_core.stores.reader import EntryType


def resolve(nix: Nix, folder: Path, *names: str) -> tuple[ResolvedPackage, ...]:
    return nix.evaluate(LocalPath(folder).pin("latest"), names, [], AMD64)


def one_package(folder: Path, script: str, **attributes: str) -> Path:
    """Write a package set with one package `x`, whose builder runs *script*."""
    more = " ".join(f"{name} = {value};" for name, value in attributes.items())
    text = f"""{{ system }}: {{ x = derivation {{
      name = "x-{time.time_ns()}"; inherit system; builder = "/bin/sh"; PATH = "/usr/bin:/bin"; {more}
      args = [ "-euc" ''{script}'' ];
    }}; }}"""
    (folder / "default.nix").write_text(text)
    return folder


def failure(nix: Nix, packages: tuple[ResolvedPackage, ...]) -> NixBuildError:
    with pytest.raises(NixBuildError) as caught, nix.realise(packages):
        pass
    return caught.value


def processes(word: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in command:
            found.append(command.decode(errors="replace"))
    return found


def gone(word: str) -> bool:
    end = time.monotonic() + 5
    while processes(word) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes(word)


class TestClosure:
    def test_real_programs_with_their_libraries(self, nix: Nix, debian_packages: Path) -> None:
        """The closure of real programs holds all that they refer to, and every byte can be read."""
        packages = resolve(nix, debian_packages, "curl", "jq", "python3Packages.six")
        with nix.realise(packages) as realisation:
            closure = realisation.closure
            assert set(closure.roots) == {output.path for package in packages for output in package.outputs}
            assert {"glibc", "jq", "python3", "libcurl4"} <= {path.package_name for path in closure.topological()}
            assert all(info.nar_hash is not None and info.nar_size > 0 for info in closure)
            jq = next(path for path in closure.roots if path.package_name == "jq")
            entries = {entry.name: entry for entry in realisation.reader.listing(jq)}
            assert entries[b"bin/jq"].type is EntryType.REGULAR
            assert realisation.reader.read_head(jq, b"bin/jq", 4) == b"\x7fELF"

    def test_events_tell_what_is_built(self, nix: Nix, tmp_path: Path) -> None:
        """A build is followed by its start, its words and its progress; a second one has nothing to build."""
        packages = resolve(nix, one_package(tmp_path, "echo a word; echo > $out"), "x")
        events: list[BuildEvent] = []
        with nix.realise(packages, on_event=events.append):
            pass
        derivation = str(packages[0].derivation)
        assert NixBuildStarted(derivation=derivation) in events
        assert NixLogLine(derivation=derivation, line="a word") in events
        assert any(isinstance(event, NixProgress) and event.done == 1 for event in events)
        again: list[BuildEvent] = []
        with nix.realise(packages, on_event=again.append):
            pass
        assert not any(isinstance(event, NixBuildStarted) for event in again)

    def test_nothing_is_an_empty_closure(self, nix: Nix) -> None:
        """No packages have a closure without paths."""
        with nix.realise(()) as realisation:
            assert len(realisation.closure) == 0

    def test_a_wide_closure(self, nix: Nix, debian_packages: Path) -> None:
        """A package with very many references is realised whole."""
        with nix.realise(resolve(nix, debian_packages, "chain")) as realisation:
            assert len(realisation.closure) == 20


class TestRoots:
    def collect(self, nix: Nix) -> None:
        program = "nix-store" if nix.binaries is None else str(nix.binaries / "nix-store")
        assert nix.store is not None
        command = [program, "--store", nix.store, "--gc", "--option", "build-users-group", ""]
        subprocess.run(command, check=True, capture_output=True)

    def test_paths_are_held_until_the_context_ends(self, nix: Nix, tmp_path: Path) -> None:
        """The garbage collector removes nothing inside the context, and everything after it; no root is left."""
        # a store of its own: the collector would empty the one of the session
        nix = attrs.evolve(demo_nix(tmp_path / "store"), binaries=nix.binaries, environment=nix.environment)
        packages = resolve(nix, one_package(tmp_path, "echo > $out"), "x")
        store = Path(str(nix.store)) / "nix/store"
        path = store / packages[0].outputs[0].path.base
        with nix.realise(packages):
            self.collect(nix)
            assert path.exists()
        self.collect(nix)
        assert not path.exists()
        assert not list((Path(str(nix.store)) / "nix/var/nix/gcroots/auto").iterdir())

    def test_what_was_collected_since_its_evaluation_says_so(self, nix: Nix, tmp_path: Path) -> None:
        """A derivation that the garbage collector removed is an error with the advice to try again."""
        nix = attrs.evolve(demo_nix(tmp_path / "store"), binaries=nix.binaries, environment=nix.environment)
        packages = resolve(nix, one_package(tmp_path, "echo > $out"), "x")
        self.collect(nix)
        assert "try again" in failure(nix, packages).hint

    def test_the_folder_of_roots_is_removed(self, nix: Nix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is left among the temporary files, also where the context ends with an exception."""
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        packages = resolve(nix, one_package(tmp_path, "echo > $out"), "x")
        held: list[Path] = []

        def use() -> None:
            with nix.realise(packages):
                held.extend(temporary.iterdir())
                raise KeyError

        with pytest.raises(KeyError):
            use()
        assert held
        assert not list(temporary.iterdir())


class TestFailures:
    def test_a_failed_build_shows_its_log(self, nix: Nix, tmp_path: Path) -> None:
        """The error names the derivation and holds the last lines of its log, no more, and pickles."""
        script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); done; echo to stderr >&2; exit 3"
        packages = resolve(nix, one_package(tmp_path, script), "x")
        error = failure(nix, packages)
        assert error.derivation == packages[0].derivation
        assert error.log_tail == (*(f"line {n}" for n in range(36, 60)), "to stderr")
        assert "exit code 3" in error.message
        assert pickle.loads(pickle.dumps(error)).diagnostics() == error.diagnostics()

    def test_a_failed_dependency_is_the_one_named(self, nix: Nix, debian_packages: Path) -> None:
        """Where a dependency fails, the error is about the dependency."""
        error = failure(nix, resolve(nix, debian_packages, "failingDep"))
        assert error.derivation.endswith("-failing-1.0.drv")
        assert error.log_tail == ("about to fail", "to stderr")

    def test_another_platform_needs_a_helper(self, nix: Nix, debian_packages: Path) -> None:
        """A package that this machine cannot build is an error that tells what could."""
        error = failure(nix, resolve(nix, debian_packages, "foreign"))
        assert "riscv64-linux" in error.message
        assert "binfmt" in error.hint

    def test_no_output_is_a_failed_build(self, nix: Nix, debian_packages: Path) -> None:
        """A builder that forgets its output is told as such."""
        assert "failed to produce output" in failure(nix, resolve(nix, debian_packages, "noOutput")).message

    def test_another_content_than_promised(self, nix: Nix, tmp_path: Path) -> None:
        """A fixed output with another hash is an error with both hashes."""
        fixed = {"outputHash": f'"sha256:{"0" * 64}"', "outputHashMode": '"flat"', "outputHashAlgo": '"sha256"'}
        error = failure(nix, resolve(nix, one_package(tmp_path, "echo x > $out", **fixed), "x"))
        assert "hash mismatch" in error.message
        assert "another revision" in error.hint

    def test_a_builder_that_shouts_does_not_hang(self, nix: Nix, tmp_path: Path) -> None:
        """A builder with megabytes of log, and a line without end, is built."""
        script = 'head -c 3000000 /dev/zero | tr "\\\\0" x; echo; seq 1 40000 >&2; echo > $out'
        with nix.realise(resolve(nix, one_package(tmp_path, script), "x")) as realisation:
            assert len(realisation.closure) == 1

    def test_a_builder_cannot_forge_messages(self, nix: Nix, tmp_path: Path) -> None:
        """What a builder prints in the form of Nix's own log changes no error and breaks nothing."""
        forged = '@nix {"action":"msg","level":0,"msg":"error: forged","raw_msg":"forged"}'
        script = f"printf %s\\\\n '\\''{forged}'\\'' '@nix {{' >&2; exit 4".replace("'\\''", "'")
        error = failure(nix, resolve(nix, one_package(tmp_path, script), "x"))
        assert "exit code 4" in error.message


class TestEnds:
    """`sleep` gets a number of seconds that no other process has, to be recognised by."""

    def sleeper(self, nix: Nix, folder: Path) -> tuple[str, tuple[ResolvedPackage, ...]]:
        seconds = f"600.{time.time_ns() % 1_000_000_000:09d}"
        return seconds, resolve(nix, one_package(folder, f"echo started; sleep {seconds}; echo > $out"), "x")

    def test_the_timeout_ends_the_builder(self, nix: Nix, tmp_path: Path) -> None:
        """When the time for the call is over, no builder is left, and the error tells what was built."""
        seconds, packages = self.sleeper(nix, tmp_path)
        with pytest.raises(NixTimeout) as caught, attrs.evolve(nix, timeout=2.0).realise(packages):
            pass
        assert gone(seconds)
        assert caught.value.seconds == 2.0
        assert str(packages[0].derivation) in caught.value.message
        assert caught.value.log_tail == ("started",)

    def test_a_silent_builder_is_ended(self, nix: Nix, tmp_path: Path) -> None:
        """A builder that says nothing for too long is ended, and the error names it."""
        seconds, packages = self.sleeper(nix, tmp_path)
        with pytest.raises(NixTimeout) as caught, attrs.evolve(nix, max_silent=1.0).realise(packages):
            pass
        assert gone(seconds)
        assert str(packages[0].derivation) in caught.value.message
        assert caught.value.log_tail == ("started",)

    def test_cancelling_ends_the_builder(self, nix: Nix, tmp_path: Path) -> None:
        """Cancelling from another thread ends the call within moments, and no builder is left."""
        seconds, packages = self.sleeper(nix, tmp_path)
        token = Cancellation()
        seen: list[bool] = []

        def listen(event: BuildEvent) -> None:
            if isinstance(event, NixLogLine) and event.line == "started":
                seen.append(bool(processes(seconds)))
                threading.Timer(0.2, token.cancel).start()

        begin = time.monotonic()
        with pytest.raises(Cancelled), nix.realise(packages, on_event=listen, cancellation=token):
            pass
        assert seen
        assert time.monotonic() - begin < 10
        assert gone(seconds)

    def test_an_interrupt_ends_the_builder(self, nix: Nix, tmp_path: Path) -> None:
        """Whatever a listener raises, a keyboard interrupt too, no builder is left."""
        seconds, packages = self.sleeper(nix, tmp_path)

        def listen(event: BuildEvent) -> None:
            if isinstance(event, NixLogLine) and event.line == "started":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), nix.realise(packages, on_event=listen):
            pass
        assert gone(seconds)

    def test_a_nix_that_does_not_listen_is_killed_with_its_builder(
        self, nix: Nix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where Nix does not react to the polite signal, its builders are ended without it."""
        monkeypatch.setattr("nixery_core.nix._process._GRACE", 0.0)
        seconds, packages = self.sleeper(nix, tmp_path)

        def listen(event: BuildEvent) -> None:
            if isinstance(event, NixLogLine) and event.line == "started":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), nix.realise(packages, on_event=listen):
            pass
        assert gone(seconds)

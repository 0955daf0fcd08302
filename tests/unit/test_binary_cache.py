"""What a binary cache is asked, what it may answer, and what is remembered."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import fsspec
import pytest

from nixery_core.errors import BinaryCacheError, InvalidConfig, InvalidDocument, UntrustedPath
from nixery_core.model.digest import nix_base32
from nixery_core.model.storepath import StorePath
from nixery_core.stores.binary_cache import BinaryCache, CacheInfo
from nixery_core.stores.narinfo import NarInfo
from nixery_core.stores.signatures import _key
from nixery_core.testing.binary_cache import SigningKey, write_cache
from nixery_core.testing.file_server import Answer, FileServer, Request
from nixery_core.testing.memory_store import MemoryStore

KEY = SigningKey("lab-1", b"k" * 32)
OTHER = SigningKey("other-1", b"o" * 32)


def path(number: int) -> StorePath:
    return StorePath(nix_base32(number.to_bytes(20, "little")), f"package-{number}")


ABSENT = path(999)
PATHS = [path(number) for number in range(12)]
FIRST = PATHS[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A signed cache of twelve paths, each of which refers to the three before it."""
    references = {PATHS[i]: PATHS[max(0, i - 3) : i] for i in range(len(PATHS))}
    write_cache(tmp_path / "cache", MemoryStore(dict.fromkeys(PATHS, b"x")), references=references, keys=[KEY])
    return tmp_path / "cache"


@pytest.fixture
def memory_url(folder: Path) -> Iterator[str]:
    """The same cache in fsspec's memory."""
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/binary-cache-test", recursive=True)
    yield "memory://binary-cache-test"
    fs.rm("/binary-cache-test", recursive=True)


def change(folder: Path, of: StorePath, edit: Callable[[bytes], bytes]) -> None:
    file = folder / f"{of.hash}.narinfo"
    file.write_bytes(edit(file.read_bytes()))


def local(folder: Path, *keys: SigningKey) -> BinaryCache:
    return BinaryCache(str(folder), [key.public for key in keys or (KEY,)])


def at(url: str, **arguments: object) -> BinaryCache:
    return BinaryCache(url, str(KEY.public), **{"retries": 2, "timeout": 5.0, **arguments})


def elsewhere(info: NarInfo | None, url: str) -> NarInfo:
    assert info is not None
    return attrs.evolve(info, url=url)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("nixery-core")]


class TestCacheInfo:
    def test_what_nix_writes(self) -> None:
        """Store directory, priority and mass queries are read; fields of later versions are passed over."""
        info = CacheInfo.parse(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\nFuture: yes\n")
        assert (info.store_dir, info.priority, info.want_mass_query) == ("/nix/store", 30, True)

    def test_defaults_are_those_of_nix(self) -> None:
        """A cache that says little has priority 50 and no wish for mass queries."""
        assert CacheInfo.parse(b"StoreDir: /nix/store\n") == CacheInfo(priority=50, want_mass_query=False)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"<html>\n",
            b"Priority: 30\n",
            b"StoreDir: /nix/store\nPriority: high\n",
            b"StoreDir: /nix/store\nStoreDir: /nix/store\n",
            b"StoreDir: /nix/store\nPriority: -1\n",
            b"StoreDir: /nix/store\nWantMassQuery: \xff\n",
        ],
    )
    def test_anything_else_is_refused(self, data: bytes) -> None:
        """A web page, a missing store directory and broken numbers are no cache."""
        with pytest.raises(InvalidDocument, match="the address"):
            CacheInfo.parse(data, where="the address")

    def test_a_cache_of_another_store_is_refused(self, folder: Path) -> None:
        """Paths of another store directory would not run; the error comes before any path is asked for."""
        (folder / "nix-cache-info").write_text("StoreDir: /gnu/store\n")
        with pytest.raises(BinaryCacheError, match="/gnu/store"):
            local(folder).info()

    def test_what_is_no_cache_is_named(self, tmp_path: Path) -> None:
        """A directory without nix-cache-info is no binary cache, and the error names it."""
        with pytest.raises(BinaryCacheError, match=str(tmp_path)):
            local(tmp_path).narinfo(FIRST)


class TestEveryAddress:
    @pytest.fixture(params=["path", "file", "http", "memory"])
    def cache(self, request: pytest.FixtureRequest, folder: Path) -> Iterator[BinaryCache]:
        if request.param == "http":
            with FileServer(folder) as server:
                yield at(server.url)
        elif request.param == "memory":
            yield at(request.getfixturevalue("memory_url"))
        else:
            yield at(f"file://{folder}" if request.param == "file" else str(folder))

    def test_one_path(self, cache: BinaryCache) -> None:
        """A path of the cache has its narinfo, any other has none."""
        info = cache.narinfo(PATHS[5])
        assert info is not None
        assert (info.store_path, info.references) == (PATHS[5], tuple(sorted(PATHS[2:5])))
        assert cache.narinfo(ABSENT) is None

    def test_many_paths(self, cache: BinaryCache) -> None:
        """Every path gets its answer, once, whether it is there or not."""
        found = list(cache.narinfos([*PATHS, ABSENT]))
        assert sorted(path for path, _ in found) == sorted([*PATHS, ABSENT])
        assert {path for path, info in found if info is None} == {ABSENT}
        assert all(info.store_path == path for path, info in found if info)

    def test_archives_and_small_files(self, cache: BinaryCache) -> None:
        """The archive comes in pieces; a small file comes whole, or not at all."""
        info = cache.narinfo(FIRST)
        assert info is not None
        assert len(b"".join(cache.archive(info))) == info.file_size
        assert cache.file("nix-cache-info") is not None
        assert cache.file("nothing.ls") is None

    def test_an_archive_that_is_gone(self, cache: BinaryCache) -> None:
        """A narinfo whose archive is not there is an error with its address, not an empty archive."""
        info = cache.narinfo(FIRST)
        assert info is not None
        with pytest.raises(BinaryCacheError, match="nar/gone"):
            list(cache.archive(elsewhere(info, "nar/gone.nar")))

    def test_it_pickles(self, cache: BinaryCache) -> None:
        """A copy in another process asks for itself."""
        cache.info()
        copy = pickle.loads(pickle.dumps(cache))
        assert copy == cache
        assert copy.narinfo(FIRST) == cache.narinfo(FIRST)


class TestTrust:
    def test_a_changed_narinfo_is_refused(self, folder: Path) -> None:
        """No fact that decides the content can be changed behind the signature."""
        good = (folder / f"{FIRST.hash}.narinfo").read_bytes()
        changes = [
            (b"NarSize: ", b"NarSize: 1"),
            (b"NarHash: sha256:", b"NarHash: sha256:" + nix_base32(bytes(32)).encode() + b"\nWas: "),
            (b"References: ", b"References: " + ABSENT.base.encode() + b" "),
        ]
        for old, new in changes:
            change(folder, FIRST, lambda _, old=old, new=new: good.replace(old, new))
            with pytest.raises(UntrustedPath, match="signature by lab-1 is wrong"):
                local(folder).narinfo(FIRST)
            with pytest.raises(UntrustedPath, match="signature by lab-1 is wrong"):
                list(local(folder).narinfos(PATHS))

    def test_an_unsigned_path_is_refused(self, folder: Path) -> None:
        """Without a signature nothing is taken, and the error says who would be trusted."""
        change(folder, FIRST, lambda data: data.partition(b"Sig:")[0])
        with pytest.raises(UntrustedPath, match=r"is not signed, and trusted is lab-1") as caught:
            local(folder).narinfo(FIRST)
        assert "allow_unsigned" in caught.value.hint

    def test_a_path_signed_by_a_stranger_is_refused(self, folder: Path) -> None:
        """A signature that nobody asked for vouches for nothing."""
        with pytest.raises(UntrustedPath, match=r"is signed by lab-1, and trusted is other-1"):
            local(folder, OTHER).narinfo(FIRST)

    def test_a_wrong_key_of_the_right_name_is_refused(self, folder: Path) -> None:
        """The name of a key is not the key."""
        with pytest.raises(UntrustedPath, match="signature by lab-1 is wrong"):
            local(folder, SigningKey("lab-1", b"z" * 32)).narinfo(FIRST)

    def test_a_caller_may_go_without(self, folder: Path) -> None:
        """allow_unsigned, said by name, takes what nobody vouches for."""
        change(folder, FIRST, lambda data: data.partition(b"Sig:")[0])
        assert BinaryCache(str(folder), allow_unsigned=True).narinfo(FIRST) is not None

    def test_the_narinfo_of_another_path_is_refused(self, folder: Path) -> None:
        """A well-signed answer to another question is no answer."""
        data = (folder / f"{PATHS[1].hash}.narinfo").read_bytes()
        change(folder, FIRST, lambda _: data)
        with pytest.raises(BinaryCacheError, match=f"speaks of {PATHS[1]}"):
            local(folder).narinfo(FIRST)

    @pytest.mark.parametrize(
        "url", ["../../etc/shadow", "/etc/shadow", "nar/../../x", "file:///etc/shadow", "http://x/y", "nar/*", "a//b"]
    )
    def test_an_archive_outside_of_a_directory_is_refused(self, folder: Path, url: str) -> None:
        """The address of an archive is not signed: it must stay within the cache."""
        change(folder, FIRST, lambda data: data.replace(b"URL: nar/", f"URL: {url}\nWas: ".encode()))
        with pytest.raises(BinaryCacheError, match="leads out of the cache"):
            local(folder).narinfo(FIRST)

    @pytest.mark.parametrize("url", ["nar/x.nar?hash=abc", "https://cdn.example.org/x.nar.xz"])
    def test_what_a_web_server_may_say(self, folder: Path, url: str) -> None:
        """On the web an archive may be named by a query, or be on another server; local files stay out of reach."""
        change(folder, FIRST, lambda data: data.replace(b"URL: nar/", f"URL: {url}\nWas: ".encode()))
        change(folder, PATHS[1], lambda data: data.replace(b"URL: nar/", b"URL: file:///etc/shadow\nWas: "))
        with FileServer(folder) as server:
            info = at(server.url).narinfo(FIRST)
            assert info is not None
            assert info.url == url
            with pytest.raises(BinaryCacheError, match="leads out of the cache"):
                at(server.url).narinfo(PATHS[1])

    def test_what_is_no_narinfo_is_named(self, folder: Path) -> None:
        """A file that was cut short is an error with its address."""
        change(folder, FIRST, lambda data: data[:-1])
        with pytest.raises(BinaryCacheError, match=f"{FIRST.hash}.narinfo is cut short"):
            local(folder).narinfo(FIRST)


class TestWebServers:
    def test_what_fails_for_a_moment_is_asked_again(self, folder: Path) -> None:
        """Answers 500, 503 and 429 are repeated; the caller sees none of them."""

        def answer(request: Request, times: int) -> Answer | None:
            return Answer((503, 500, 429)[times]) if times < 2 and request.path.endswith(".narinfo") else None

        with FileServer(folder, answer) as server:
            assert all(dict(at(server.url).narinfos(PATHS[:8])).values())
            assert server.asked(".narinfo") == 3 * 8

    def test_what_goes_on_failing_is_an_error(self, folder: Path) -> None:
        """A cache that answers 500 for ever is given up after the retries, and no thread is left."""
        with FileServer(
            folder, lambda request, _: Answer(500) if request.path.endswith(".narinfo") else None
        ) as server:
            cache = at(server.url, retries=1)
            with pytest.raises(BinaryCacheError, match="answered 500"):
                list(cache.narinfos(PATHS))
            with pytest.raises(BinaryCacheError, match="answered 500"):
                cache.narinfo(FIRST)
        assert own_threads() == []

    def test_a_silent_cache_is_given_up(self, folder: Path) -> None:
        """A cache that accepts and says nothing is an error after the timeout."""
        silence = threading.Event()
        with FileServer(folder, lambda request, _: Answer(before=lambda: silence.wait(20))) as server:
            started = time.monotonic()
            with pytest.raises(BinaryCacheError, match=r"127\.0\.0\.1.*timed out"):
                at(server.url, retries=0, timeout=0.2).info()
            assert time.monotonic() - started < 5
            silence.set()

    def test_a_cache_that_is_not_there(self) -> None:
        """A refused connection is an error that names the address."""
        with pytest.raises(BinaryCacheError, match=r"http://127\.0\.0\.1:1/nix-cache-info cannot be read"):
            at("http://127.0.0.1:1", retries=0).info()

    def test_missing_paths_are_not_asked_for_again(self, folder: Path) -> None:
        """A 404 is remembered for a while, and no longer."""
        with FileServer(folder) as server:
            cache = at(server.url, negative_ttl=30)
            assert [cache.narinfo(ABSENT), dict(cache.narinfos([ABSENT]))[ABSENT], cache.narinfo(ABSENT)] == [None] * 3
            assert server.asked(f"{ABSENT.hash}.narinfo") == 1
            forgetful = at(server.url, negative_ttl=0)
            assert [forgetful.narinfo(ABSENT), forgetful.narinfo(ABSENT)] == [None] * 2
            assert server.asked(f"{ABSENT.hash}.narinfo") == 3

    def test_a_forbidden_path_is_a_missing_path(self, folder: Path) -> None:
        """S3 answers 403 for what is not there; a cache that refuses everything is an error all the same."""
        with FileServer(folder, lambda request, _: Answer(403) if ABSENT.hash in request.path else None) as server:
            assert at(server.url).narinfo(ABSENT) is None
        with FileServer(folder, lambda request, _: Answer(403)) as server:
            with pytest.raises(BinaryCacheError, match="403") as caught:
                at(server.url).narinfo(ABSENT)
            assert "password" in caught.value.hint

    def test_a_download_that_breaks_off_goes_on_where_it_was(self, folder: Path, tmp_path: Path) -> None:
        """The rest is asked for by a range, or skipped to where ranges are not understood."""
        data = os.urandom(5_000_000)
        (folder / "nar" / "large").write_bytes(data)
        info = elsewhere(local(folder).narinfo(FIRST), "nar/large")
        for understood in (True, False):

            def answer(request: Request, times: int, understood: bool = understood) -> Answer | None:
                if not request.path.endswith("large"):
                    return None
                if times < 2 and understood:
                    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
                    headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
                    return Answer(206 if start else 200, data[start:], headers, cut_after=1_700_000)
                if times < 2:
                    return Answer(200, data, cut_after=1_700_000 + 1_000_000 * times)
                return None if understood else Answer(200, data)

            with FileServer(folder, answer) as server:
                assert b"".join(at(server.url).archive(info)) == data
                assert server.asked("large") == 3
                assert (server.requests[-1].headers["Range"] > "bytes=2000000-") is True

    def test_a_download_without_progress_is_given_up(self, folder: Path) -> None:
        """Breaking off at the same byte again and again ends in an error."""
        info = local(folder).narinfo(FIRST)
        assert info is not None
        with FileServer(
            folder, lambda r, _: Answer(200, b"x" * 99, cut_after=0) if r.path[-4:] == ".nar" else None
        ) as s:
            with pytest.raises(BinaryCacheError, match="cannot be read"):
                list(at(s.url).archive(info))
            assert s.asked(".nar") == 3

    def test_a_narinfo_without_end_does_not_fill_the_memory(self, folder: Path) -> None:
        """What is larger than any narinfo is refused."""
        endless = Answer(200, b"x" * (5 << 20))
        with (
            FileServer(folder, lambda request, _: endless if ".narinfo" in request.path else None) as server,
            pytest.raises(BinaryCacheError, match="more than 4 MiB"),
        ):
            at(server.url).narinfo(FIRST)

    def test_headers_passwords_and_queries_are_sent(self, folder: Path) -> None:
        """Private caches are asked with headers, basic authentication or a token; none of them is in an error."""
        with FileServer(folder) as server:
            host = server.url.removeprefix("http://")
            cache = at(f"http://me:hunter2@{host}/?token=secret1", options={"headers": {"X-Tenant": "one"}})
            assert cache.narinfo(FIRST) is not None
            request = server.requests[-1]
            assert request.path.endswith(".narinfo?token=secret1")
            assert request.headers["X-Tenant"] == "one"
            assert request.headers["authorization"].startswith("Basic ")
            texts = [repr(cache), cache.where("x")]
        with pytest.raises(BinaryCacheError) as caught:
            at(f"http://me:hunter2@{host}/?token=secret1", retries=0).info()
        for text in [*texts, str(caught.value), caught.value.diagnostics()]:
            assert "hunter2" not in text
            assert "secret1" not in text

    def test_a_redirect_is_followed(self, folder: Path) -> None:
        """Caches in front of object storages redirect."""

        def answer(request: Request, times: int) -> Answer | None:
            if request.path.startswith("/moved"):
                return None
            return Answer(302, headers={"Location": "/moved" + request.path})

        (folder / "moved").symlink_to(folder)
        with FileServer(folder, answer) as server:
            assert at(server.url, retries=0).narinfo(FIRST) is not None

    def test_answers_may_be_packed(self, folder: Path) -> None:
        """A server may say Content-Encoding: caches in S3 do so for narinfos that were uploaded packed."""

        def answer(request: Request, times: int) -> Answer | None:
            if not request.path.endswith(".narinfo"):
                return None
            data = (folder / request.path[1:]).read_bytes()
            return Answer(200, gzip.compress(data), {"Content-Encoding": "gzip"})

        with FileServer(folder, answer) as server:
            assert at(server.url).narinfo(FIRST) == local(folder).narinfo(FIRST)

    def test_a_packed_answer_that_explodes(self, folder: Path) -> None:
        """The bound on narinfos is that of what they unpack to."""
        bomb = Answer(200, gzip.compress(bytes(64 << 20)), {"Content-Encoding": "gzip"})
        with (
            FileServer(folder, lambda request, _: bomb if request.path.endswith(".narinfo") else None) as server,
            pytest.raises(BinaryCacheError, match="more than 4 MiB"),
        ):
            at(server.url).narinfo(FIRST)

    def test_the_proxy_of_the_environment_is_used(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the environment names a proxy, it is asked, with its password; not for what no_proxy names."""

        def answer(request: Request, times: int) -> Answer | None:
            name = request.path.removeprefix("http://cache.example.org/")
            return Answer(200, (folder / name).read_bytes()) if name != request.path else None

        with FileServer(folder, answer) as server:
            monkeypatch.setenv("http_proxy", server.url.replace("//", "//user:word@"))
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert at("http://cache.example.org").narinfo(FIRST) is not None
            assert server.requests[-1].headers["proxy-authorization"].startswith("Basic ")
            assert at(server.url).narinfo(FIRST) is not None
            assert server.requests[-1].path == f"/{FIRST.hash}.narinfo"


class TestThreadsAndProcesses:
    def test_an_iterator_that_is_closed_leaves_no_thread(self, folder: Path) -> None:
        """Whoever stops reading stops the questions too."""
        with FileServer(folder) as server:
            answers = at(server.url).narinfos(PATHS)
            next(answers)
            answers.close()  # type: ignore[attr-defined]
            assert own_threads() == []

    def test_a_fork_asks_over_connections_of_its_own(self, folder: Path) -> None:
        """A child process does not read from its parent's connections."""
        with FileServer(folder) as server:
            cache = at(server.url, connections=2)
            cache.narinfo(FIRST)
            child = os.fork()
            if child == 0:
                os._exit(0 if cache.narinfo(PATHS[1]) is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert cache.narinfo(PATHS[2]) is not None
            assert server.asked("nix-cache-info") == 2


class TestArguments:
    @pytest.mark.parametrize(
        "keys", ["cache.nixos.org-2", "lab-1:AAAA", "lab-1", ":6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=", "x:!"]
    )
    def test_what_is_no_key_is_refused(self, keys: str) -> None:
        """A key that cannot be read is an error before anything is fetched."""
        with pytest.raises(InvalidConfig):
            BinaryCache("https://cache.example.org", keys)

    def test_a_secret_key_is_not_repeated(self) -> None:
        """Whoever gives the secret half by mistake does not find it in a log."""
        secret = "lab-1:" + "c2Vj" * 21 + "cg=="
        with pytest.raises(InvalidConfig) as caught:
            BinaryCache("https://cache.example.org", secret)
        assert "c2Vj" not in caught.value.diagnostics()

    def test_keys_in_one_text(self) -> None:
        """The line trusted-public-keys of nix.conf can be given as it is."""
        cache = BinaryCache("x", f"cache.nixos.org-1 {KEY.public}")
        assert [key.name for key in cache.trusted_keys] == ["cache.nixos.org-1", "lab-1"]

    @pytest.mark.parametrize(
        "arguments", [{"url": "http://127.0.0.1:1", "options": {"hedaers": {}}}, {"url": "/tmp", "options": {"a": 1}}]
    )
    def test_options_that_nobody_takes_are_refused(self, arguments: dict[str, object]) -> None:
        """A misspelled option is an error."""
        with pytest.raises(InvalidConfig):
            BinaryCache(**arguments).info()

    @pytest.mark.parametrize("package", ["urllib3", "cryptography"])
    def test_a_package_that_is_missing_is_named(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        """Without the extra, the error says which package is missing and how to get it."""
        caches = {"urllib3": at("http://127.0.0.1:1"), "cryptography": at(str(folder))}
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "nixery_core.stores._http_objects", raising=False)
        monkeypatch.setattr("nixery_core.stores.signatures._key", _key.__wrapped__)
        with pytest.raises(InvalidConfig, match=package) as caught:
            caches[package].narinfo(FIRST)
        assert "nixery-core[cache]" in caught.value.hint

    def test_a_scheme_that_nobody_knows(self) -> None:
        """The error says what to do."""
        with pytest.raises(InvalidConfig, match="nosuch"):
            BinaryCache("nosuch://x").info()

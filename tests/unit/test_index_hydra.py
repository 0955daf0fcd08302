"""Hydra as a package index, against a server that answers as Hydra does.

The answers have the shape of ``build-success`` in Hydra's ``hydra-api.yaml``, and the redirections of
its controllers; a Hydra to test with there is none.
"""

import contextlib
import http.server
import json
import pickle
import threading

import pytest

from nixery_core import Cancellation
from nixery_core.errors import InvalidConfig, InvalidTag, PackageProblem, ProblemKind, SourceError
from nixery_core.index.hydra import HydraIndex
from nixery_core.index.package_index import choose_none
from nixery_core.model.platform import AMD64, ARM64

HELLO = "/nix/store/y26qxcq1gg2hrqpxdc58b2fghv2bhxjg-hello-2.10"
CURL = "/nix/store/" + "c" * 32 + "-curl-8"


def build(number, job, outputs, **more):
    return {
        "id": number, "job": job, "project": "nixpkgs", "jobset": "trunk", "nixname": "hello-2.10",
        "system": "x86_64-linux", "finished": 1, "buildstatus": 0, "jobsetevals": [7], "priority": 100,
        "starttime": 1588365711, "stoptime": 1588365711, "timestamp": 1588365711, "buildmetrics": {},
        "drvpath": "/nix/store/ab9zv2y5gm8hr6g318p0s6kaclwj4slr-hello-2.10.drv", "buildproducts": {},
        "buildoutputs": {name: {"path": path} for name, path in outputs.items()},
    } | more  # fmt: skip


BUILDS = {
    1: build(1, "hello.x86_64-linux", {"out": HELLO}),
    2: build(2, "curl.x86_64-linux", {"dev": CURL + "-dev", "bin": CURL + "-bin", "out": CURL, "man": CURL + "-man"}),
    3: build(3, "_1password.x86_64-linux", {"out": HELLO}),
    4: build(4, "failed.x86_64-linux", {"out": HELLO}, buildstatus=2),
    5: build(5, "queued.x86_64-linux", {"out": HELLO}, finished=0, buildstatus=None),
    6: build(6, "odd.x86_64-linux", {"out": None}),
    8: build(8, "other.x86_64-linux", {"out": HELLO}, jobset="staging"),
    9: build(9, "wrong.x86_64-linux", {"out": HELLO}, system="aarch64-linux"),
    10: build(10, "hello.aarch64-linux", {"out": CURL}, system="aarch64-linux"),
}
JOBS = {found["job"]: number for number, found in BUILDS.items()}


@contextlib.contextmanager
def hydra():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            parts = self.path.strip("/").split("/")
            if self.headers["Accept"] != "application/json":
                self.answer(200, b"<html>a page for people</html>")
            elif parts == ["job", "nixpkgs", "trunk", "broken.x86_64-linux", "latest"]:
                self.answer(500, b"{}")
            elif parts == ["job", "nixpkgs", "trunk", "html.x86_64-linux", "latest"]:
                self.answer(200, b"<html>")
            elif parts[:1] == ["build"]:
                self.answer(200, json.dumps(BUILDS[int(parts[1])]).encode())
            elif (parts[:3] == ["job", "nixpkgs", "trunk"] and parts[4:] == ["latest"]) or parts[:2] == ["eval", "7"]:
                job = JOBS.get(parts[3])
                self.answer(302 if job else 404, b"{}", location=job and f"/build/{job}")
            else:
                self.answer(404, b'{"error": "There is no successful build to redirect to."}')

        def answer(self, code, data, location=None):
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server():
    with hydra() as found:
        yield found


def look_up(server, *names, tag="latest", platform=AMD64):
    index = HydraIndex("nixpkgs", "trunk", hydra_url=server[0])
    return index.snapshot(tag).look_up(names, platform, choose=choose_none, cancellation=Cancellation())


class TestHydraIndex:
    @pytest.mark.parametrize("tag", ["latest", "7"])
    def test_a_job_gives_its_outputs(self, server, tag):
        """The outputs of a build are those of the package, by the last build or by an evaluation."""
        hello, curl = look_up(server, "hello", "curl", tag=tag)
        assert [str(output.path) for output in hello.outputs] == [HELLO]
        assert [output.name for output in curl.outputs] == ["bin", "man"]

    def test_platforms_have_jobs_of_their_own(self, server):
        """The Nix system of the image is part of the name of the job."""
        (hello,) = look_up(server, "hello", platform=ARM64)
        assert str(hello.outputs[0].path) == CURL

    def test_names_that_image_names_cannot_spell(self, server):
        """The underscore before a digit may be left out, and one output may be named."""
        one, dev = look_up(server, "1password", "curl.dev")
        assert one.attribute == "_1password"
        assert (dev.attribute, str(dev.outputs[0].path)) == ("curl.dev", CURL + "-dev")

    def test_everything_that_is_wrong_has_its_reason(self, server):
        """Builds that are missing, failed, unfinished or for another platform are told, each by itself."""
        looked = look_up(server, "nothing", "failed", "queued", "wrong", "a.b")
        assert all(isinstance(problem, PackageProblem) for problem in looked)
        assert [problem.kind for problem in looked] == [
            ProblemKind.NOT_FOUND, ProblemKind.FAILED, ProblemKind.FAILED, ProblemKind.UNSUPPORTED_PLATFORM,
            ProblemKind.NOT_FOUND,
        ]  # fmt: skip
        assert "a dependency failed" in looked[1].reason
        assert "not finished" in looked[2].reason

    @pytest.mark.parametrize("name", ["odd", "other", "broken", "html"])
    def test_answers_of_another_form_are_errors_of_the_source(self, server, name):
        """What is no build of this jobset is not taken for one."""
        with pytest.raises(SourceError):
            look_up(server, name)

    def test_an_evaluation_is_a_revision(self):
        """A number pins, `latest` moves, and anything else is no tag."""
        index = HydraIndex("nixpkgs", "trunk")
        assert index.snapshot("7").revision == "evaluation-7"
        assert index.snapshot("latest").revision is None
        with pytest.raises(InvalidTag):
            index.snapshot("nixos-unstable")

    def test_a_job_is_asked_for_once(self):
        """Within the time to live, and also where there is none, Hydra is not asked again."""
        with hydra() as (url, asked):
            index = HydraIndex("nixpkgs", "trunk", hydra_url=url)
            for _ in range(3):
                snapshot = index.snapshot("latest")
                snapshot.look_up(["hello", "nothing"], AMD64, choose=choose_none, cancellation=Cancellation())
            assert sum("hello" in path for path in asked) == 1
            assert sum("nothing" in path for path in asked) == 1

    def test_a_server_that_is_gone_is_told(self):
        """Where nobody answers, the error names the address."""
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:1"):
            look_up(("http://127.0.0.1:1", []), "hello")

    def test_how_jobs_are_called_is_part_of_the_identity(self):
        """Another pattern asks for other builds, so it is another index."""
        assert HydraIndex("p", "j", job="{attribute}").url != HydraIndex("p", "j").url

    def test_pickles(self):
        """An index travels to other processes."""
        index = HydraIndex("p", "j")
        assert pickle.loads(pickle.dumps(index)) == index

    @pytest.mark.parametrize("arguments", [("a/b", "c"), ("a", ""), ("a", "b", "{system}")])
    def test_bad_arguments(self, arguments):
        """What cannot be asked for is refused at once."""
        with pytest.raises(InvalidConfig):
            HydraIndex(*arguments[:2], job=arguments[2] if len(arguments) > 2 else "{attribute}")

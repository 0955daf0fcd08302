"""The web page of a registry, as a browser without scripts gets it."""

import html.parser
import re
import threading
import urllib.parse
import xml.etree.ElementTree as ET

import attrs
import pytest

from nixery_core import events
from nixery_core.errors import Cancelled, NixBuildError, QueueFull, SourceError, StorageError
from nixery_core.server import registry_app
from nixery_core.server.page import Page, SortedNames
from nixery_core.server.page.composition import read_composition
from nixery_core.server.page.plans import Plans
from nixery_core.server.page.progress import Progress
from nixery_core.server.page.views import failure_view
from nixery_core.storage.plugins import open_backend
from nixery_core.testing.asgi_client import AsgiClient
from nixery_core.testing.memory_images import memory_builder
from nixery_core.treemap import Box, squarify, treemap_svg

EVIL = "<script>alert(1)</script>\"'&"


@attrs.define
class Site:
    """A registry with its page, and a client."""

    client: AsgiClient
    page: Page
    app: object

    def get(self, target, *headers):
        return self.client.get(target, ("Host", "registry.example.org:8080"), *headers)

    def text(self, target):
        answer = self.get(target)
        assert answer.status == 200, answer.body
        Checker.check(answer.body.decode())
        return answer.body.decode()

    def post(self, target, *headers, **fields):
        body = urllib.parse.urlencode(fields).encode()
        sent = []

        async def run():
            async def send(message):
                sent.append(message)

            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            scope = {"type": "http", "method": "POST", "path": target, "headers": list(headers), "query_string": b""}
            await self.app({**scope, "scheme": "http", "root_path": ""}, receive, send)

        self.client.run(run())
        lines = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], lines, b"".join(message.get("body", b"") for message in sent[1:]).decode()

    def wait_for_plan(self, name, tag="latest"):
        plan = self.page._plans.find(name, tag)
        for _ in range(500):
            if plan.over is not None:
                return
            threading.Event().wait(0.01)
        raise AssertionError("the plan takes too long")


class Checker(html.parser.HTMLParser):
    """Complains of markup that is not closed, and of what the Content-Security-Policy forbids."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "wbr", "hr"})

    def __init__(self):
        super().__init__()
        self.open = []
        self.identities = []
        self.labelled = set()
        self.inputs = []

    @classmethod
    def check(cls, text):
        checker = cls()
        checker.feed(text)
        checker.close()
        assert checker.open == []
        assert len(set(checker.identities)) == len(checker.identities)
        assert [name for name in checker.inputs if name not in checker.labelled] == []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        assert "style" not in named
        assert not any(name.startswith("on") for name in named), (tag, named)
        for name in ("src", "href", "action"):
            assert re.match(r"/(?!/)|#", named.get(name, "/")), (tag, named)
        if tag == "script":
            assert "src" in named
        if tag == "img":
            assert "alt" in named
        if "id" in named:
            self.identities.append(named["id"])
        if tag == "label":
            self.labelled.add(named.get("for"))
        if tag in ("input", "select") and named.get("type") != "hidden":
            self.inputs.append(named.get("id"))
        if tag not in self.VOID and tag != "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def site(tmp_path):
    builder = memory_builder(open_backend(tmp_path / "images"), "bashInteractive", "coreutils", "git", "htop")
    page = Page(builder, names=SortedNames.of(["git", "gitFull", "htop", "python3Packages.six"]))
    app = registry_app(builder, on_build=page.on_build, routes=page.routes)
    page.watch(app.state.builds)
    with AsgiClient(app) as client:
        yield Site(client, page, app)
    page.close()


class TestComposing:
    def test_packages_make_a_name_and_commands(self, site):
        """What was chosen is the name of an image, and the commands to pull it from where the browser is."""
        text = re.sub("<wbr>", "", site.text("/?p=git&add=htop&shell=1&platform=arm64&tag=v1"))
        assert "docker pull registry.example.org:8080/arm64/shell/git/htop:v1" in text
        assert "podman pull --tls-verify=false registry" in text

    def test_nothing_is_chosen_at_first(self, site):
        """The first visit shows no command, and says what to do."""
        text = site.text("/")
        assert "docker pull" not in text
        assert "Add a package" in text

    def test_attributes_are_written_as_image_names(self):
        """Capitals, leading underscores and lists of words are understood; duplicates count once."""
        found = read_composition({"add": ["python3Packages.six, _1password git/git"], "p": ["git"]})
        assert found.name == "git/python3packages.six/1password"

    def test_meta_packages_are_options(self):
        """`shell` and `arm64` are understood as packages are, in their place."""
        assert read_composition({"add": ["git shell arm64"]}).name == "arm64/shell/git"

    @pytest.mark.parametrize("word", ["b!", "../x", EVIL, "x" * 300, "-"])
    def test_nonsense_is_named_and_left_out(self, site, word):
        """What cannot be a package is an error beside its field, escaped, and the rest stays."""
        text = site.text("/?" + urllib.parse.urlencode({"p": "git", "add": word, "tag": EVIL}))
        assert 'role="alert"' in text
        assert "<script>alert" not in text
        assert "docker pull registry.example.org:8080/<wbr>git" in text

    def test_a_package_can_be_removed(self, site):
        """Each chosen package has a button of its own that removes it."""
        text = site.text("/?p=git&p=htop&remove=git")
        assert "/<wbr>htop:latest" in text
        assert 'aria-label="Remove git"' not in text

    @pytest.mark.parametrize("host", ['x"><script>', "a b", "evil.example/path", ""])
    def test_a_host_that_is_none_is_not_shown(self, site, host):
        """The commands name what the browser says only where it is a host."""
        answer = site.client.get("/?p=git", *([("Host", host)] if host else []))
        assert b"docker pull REGISTRY/<wbr>git" in answer.body

    def test_names_are_completed(self, site):
        """Scripts ask for names; without one, a button shows them as links that add them."""
        assert site.get("/ui/names?q=gi").json() == {"names": ["git", "gitFull"]}
        assert site.get("/ui/names").json() == {"names": []}
        text = site.text("/?p=htop&add=six&find=1")
        assert 'href="/?p=htop&amp;p=python3Packages.six"' in text
        assert "docker pull registry.example.org:8080/<wbr>htop:latest" in text

    def test_names_that_cannot_be_had_are_no_failure(self, site):
        """An index out of reach completes nothing, and the page works."""

        class Broken:
            def complete(self, typed):
                raise SourceError("gone")

        site.page._names = Broken()
        assert site.get("/ui/names?q=gi").json() == {"names": []}


class TestPlanning:
    def test_layers_are_shown_before_they_are_pulled(self, site, tmp_path):
        """A form asks for the plan; its page shows picture and table, and nothing was stored."""
        status, headers, _ = site.post("/ui/plan", name="git/htop", tag="latest")
        assert (status, headers["location"]) == (303, "/ui/plan?name=git%2Fhtop&tag=latest")
        site.wait_for_plan("git/htop")
        text = site.text(headers["location"])
        assert text.count('<g class="tile new">') == 2
        assert re.search(r"<dt>Layers</dt><dd>2</dd>", text)
        assert list(open_backend(tmp_path / "images").list("blobs/")) == []

    def test_looking_starts_nothing(self, site):
        """GET, which crawlers and browsers send by themselves, plans nothing: it offers to."""
        text = site.text("/ui/plan?name=git")
        assert "Look at its layers" in text
        assert site.page._plans.find("git", "latest") is None

    def test_what_cannot_be_planned_says_why(self, site):
        """A package that is not there is a failure with its words; a bad name is one at once."""
        site.post("/ui/plan", name="nothing", tag="latest")
        site.wait_for_plan("nothing")
        assert "nothing: not found" in site.text("/ui/plan?name=nothing")
        assert site.post("/ui/plan", name="A", tag="latest")[0] == 400
        assert site.get("/ui/plan?name=..%2Fx").status == 400

    def test_forms_of_other_sites_start_nothing(self, site):
        """A browser says where a form comes from; one from elsewhere is refused."""
        assert site.post("/ui/plan", (b"sec-fetch-site", b"cross-site"), name="git", tag="latest")[0] == 403
        assert site.page._plans.find("git", "latest") is None

    def test_forms_have_an_end(self, site):
        """A form that is too long is refused."""
        assert site.post("/ui/plan", name="x" * 70_000)[0] == 413


class TestPlans:
    def test_few_at_once(self, tmp_path):
        """Beyond the queue nobody is taken; the same image is planned once; all are cancelled in the end."""
        gate = threading.Event()
        builder = _Gated(memory_builder(open_backend(tmp_path / "x"), "git"), gate)
        plans = Plans(builder, concurrent=1, queued=1)
        specs = [builder.spec(name) for name in ("a", "b", "c")]
        first = plans.ask(specs[0])
        builder.begun.wait(10)
        assert plans.ask(specs[0]) is first
        second = plans.ask(specs[1])
        with pytest.raises(QueueFull):
            plans.ask(specs[2])
        plans.close()
        assert isinstance(first.error, Cancelled)
        assert second.summary is None
        assert not [thread for thread in threading.enumerate() if thread.name == "nixery-core-plan"]
        with pytest.raises(QueueFull, match="about to stop"):
            plans.ask(specs[2])

    def test_they_are_believed_for_a_while(self, tmp_path):
        """What a tag stands for may change: an old plan is made again, and so is a failed one."""
        now = [0.0]
        builder = memory_builder(open_backend(tmp_path / "x"), "git")
        plans = Plans(builder, believed=300.0, clock=lambda: now[0])
        spec = _Gated(builder, None).spec
        first = _over(plans.ask(spec("git")))
        assert plans.ask(spec("git")) is first
        now[0] = 301.0
        assert plans.find("git", "latest") is None
        assert plans.ask(spec("git")) is not first
        failed = _over(plans.ask(spec("nothing")))
        assert plans.ask(spec("nothing")) is not failed
        plans.close()


class TestBuilds:
    def test_builds_and_failures_are_listed(self, site):
        """Builds of clients show with their state; failures with what went wrong."""
        site.get("/v2/git/manifests/latest")
        site.get("/v2/nothing/manifests/latest")
        text = site.text("/")
        assert '<span class="state done">done</span>' in text
        assert "nothing: not found" in text
        assert '<section aria-labelledby="failures-title">' in text
        for target in ("/ui/builds", "/ui/builds?part=1", "/ui/builds/1", "/ui/builds/2"):
            site.text(target)
        assert "sha256:" in site.text("/ui/builds/1")

    def test_an_unknown_build_is_404(self, site):
        """A build that is not remembered is said to be so."""
        assert site.get("/ui/builds/77").status == 404

    def test_logs_are_escaped(self):
        """Markup, colours, control characters and secrets of a log do not get through."""
        progress = Progress()
        progress.follow(events.NixLogLine(derivation=None, line=f"\x1b[31m{EVIL}\x00 https://me:pw@example.org"))
        (line,) = progress.standing().log
        assert "\x1b" not in line
        assert "pw@" not in line
        from nixery_core.server.page.html import _environment

        macro = _environment().get_template("parts.html").module.failure
        error = NixBuildError(f"failed {EVIL}", log_tail=(EVIL,))
        text = str(macro(failure_view(error, progress.standing())))
        assert "<script>" not in text
        assert "&lt;script&gt;" in text

    def test_what_the_operator_alone_may_know_is_not_shown(self):
        """Errors of storage and of ours are named, and nothing of their words is shown."""
        for error in (StorageError("bucket-x is gone"), RuntimeError("bucket-x")):
            failure = failure_view(error, None)
            assert "bucket-x" not in failure.summary + failure.text


class TestAnswers:
    def test_strangers_are_kept_out(self, site):
        """Every answer forbids scripts, frames and forms of other hosts, and is not kept."""
        for target in ("/", "/ui/builds", "/ui/plan?name=git"):
            headers = site.get(target).headers
            assert headers["content-security-policy"].startswith("default-src 'self'; ")
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"

    def test_files_of_the_page(self, site):
        """Each file that a page names is there, with its type, to be kept for ever; others are not."""
        text = site.text("/")
        paths = re.findall(r'"(/ui/static/[^"]+)"', text)
        assert {path.rpartition(".")[2] for path in paths} == {"css", "js", "svg"}
        for path in paths:
            answer = site.get(path)
            assert answer.status == 200
            assert "immutable" in answer.headers["cache-control"]
        assert b"http" not in re.sub(rb"http://www.w3.org/[^\"]*", b"", site.get(paths[0]).body)
        assert site.get("/ui/static/x/pages.py").status == 404
        assert site.get("/ui/static/x/..%2Fpages.py").status == 404

    def test_the_registry_is_as_it_was(self, site):
        """No route of the API is shadowed, and what is unknown is its JSON still."""
        assert site.get("/v2/").json() == {}
        for target in ("/ui", "/ui/nothing", "/nothing", "/index.html"):
            answer = site.get(target)
            assert answer.status == 404
            assert answer.json()["errors"]
        assert site.client.get("/", method="DELETE").status == 405

    def test_head_has_no_body(self, site):
        """HEAD answers as GET does, without the page."""
        head = site.client.head("/")
        assert (head.status, head.body) == (200, b"")


class TestTreemap:
    @pytest.mark.parametrize("sizes", [[1], [5, 5], [100, 1, 1], list(range(1, 95)), [10**12, 1, 10**-9], [0, 3]])
    def test_areas_are_sizes(self, sizes):
        """Tiles fill the picture exactly, each in proportion, inside, and none over another."""
        tiles = squarify([Box(str(number), size) for number, size in enumerate(sizes)], 960, 420)
        total = sum(sizes)
        assert len(tiles) == sum(size > total / 1e9 for size in sizes)
        assert sum(tile.width * tile.height for tile in tiles) == pytest.approx(960 * 420)
        for tile in tiles:
            assert tile.width * tile.height == pytest.approx(960 * 420 * tile.box.size / total, rel=1e-6, abs=1e-3)
            assert tile.x >= -1e-6
            assert tile.x + tile.width <= 960 + 1e-6
            assert tile.y >= -1e-6
            assert tile.y + tile.height <= 420 + 1e-6
        for one in tiles:
            for other in tiles:
                across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
                along = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
                assert one is other or min(across, along) < 1e-6

    def test_the_picture_is_well_formed_and_escaped(self):
        """It is an element by itself, whatever the labels hold; a picture of nothing is empty."""
        drawn = ET.fromstring(treemap_svg([Box(EVIL, 2, EVIL, "new"), Box("b", 1)], title=EVIL, description=EVIL))
        assert drawn.find("g/title").text == f"{EVIL}: {EVIL}"
        assert len(ET.fromstring(treemap_svg([], title="t", description="d"))) == 2


class _Gated:
    """A builder whose plans wait for a gate."""

    def __init__(self, builder, gate):
        self._builder = builder
        self._gate = gate
        self.begun = threading.Event()

    @staticmethod
    def spec(name):
        from nixery_core.model.image import ImageSpec

        return ImageSpec.parse(name)

    def plan(self, spec, *, on_event, cancellation):
        self.begun.set()
        while not self._gate.is_set():
            cancellation.wait(0.02)
            cancellation.check()
        return self._builder.plan(spec, on_event=on_event, cancellation=cancellation)


def _over(plan):
    while plan.over is None:
        threading.Event().wait(0.01)
    return plan

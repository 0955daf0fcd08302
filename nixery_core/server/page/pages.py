"""The pages: what each address of the web page answers."""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from starlette.routing import BaseRoute

from nixery_core.builder import ImageBuilder
from nixery_core.errors import InputError, NixeryError, QueueFull
from nixery_core.events import BuildEvent
from nixery_core.model.image import ImageSpec
from nixery_core.model.names import META_PACKAGES
from nixery_core.model.oci import canonical_json
from nixery_core.model.platform import Platform
from nixery_core.server.builds import Build, Builds
from nixery_core.server.endpoints import route
from nixery_core.server.page.composition import PLATFORM_WORDS, Composition, read_composition
from nixery_core.server.page.html import form_of, query_of, see_other, send_json, send_page, send_static
from nixery_core.server.page.names import PackageNames
from nixery_core.server.page.plans import Plans
from nixery_core.server.page.progress import Board
from nixery_core.server.page.views import BuildView, build_view, plan_view
from nixery_core.server.replies import Receive, Scope, Send, header
from nixery_core.server.settings import SpecFactory, parse_spec
from nixery_core.server.threads import Threads

_log = logging.getLogger(__name__)
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_MOST_BUILDS, _MOST_FAILURES = 12, 8


class Page:
    """The web page of one registry.

    Args:
        builder: What plans images.
        names: Names of packages to complete; None completes nothing.
        parse: Makes of a name and a tag what is built; the registry's.
        platforms: What the registry serves where a name says no platform; the registry's.
        address: Under which clients reach the registry; empty takes what the browser says.
        encrypted: Whether clients speak TLS with it; None takes what the server says.
        plans: What plans; made of *builder* by default.
    """

    def __init__(
        self,
        builder: ImageBuilder,
        *,
        names: PackageNames | None = None,
        parse: SpecFactory = parse_spec,
        platforms: Sequence[Platform] = (),
        address: str = "",
        encrypted: bool | None = None,
        plans: Plans | None = None,
    ) -> None:
        self._names = names
        self._parse = parse
        self._platforms = tuple(platforms)
        self._address = address
        self._encrypted = encrypted
        self._plans = Plans(builder) if plans is None else plans
        self._board = Board()
        self._builds: Builds | None = None
        self._threads = Threads(4)

    def on_build(self, build: Build, event: BuildEvent | None) -> None:
        """Follow a build: the observer of the registry."""
        self._board.on_build(build, event)

    def watch(self, builds: Builds) -> None:
        """Show *builds*."""
        self._builds = builds

    def close(self) -> None:
        """Cancel the plans that are being made; returns when none is left."""
        self._plans.close()

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of the page: ``/`` and what is below ``/ui/``."""
        return [
            route("/", self._front),
            route("/ui/plan", self._plan, "GET", "HEAD", "POST"),
            route("/ui/builds", self._all_builds),
            route("/ui/builds/{number:int}", self._one_build),
            route("/ui/names", self._complete),
            route("/ui/static/{hash}/{name}", _static),
        ]

    async def _front(self, scope: Scope, _: Receive, send: Send) -> None:
        query = query_of(scope)
        found = None
        if "find" in query:
            # without a script: what is typed is looked for, and not added yet
            typed = query.pop("add", [""])[0][:100]
            found = await self._found(typed, read_composition(query))
        composition = read_composition(query)
        builds = self._views()
        failures = [view for view in self._views(most=1000) if view.state == "failed"][:_MOST_FAILURES]
        values = {
            **self._common(scope),
            "composition": composition,
            "found": found,
            "platforms": _platform_choices(self._platforms),
            "completes": self._names is not None,
            "commands": self._commands(scope, composition.name, composition.tag),
            "builds": builds,
            "failures": failures,
        }
        await send_page(scope, send, "front.html", values)

    async def _plan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await self._ask_for_plan(scope, receive, send)
            return
        query = query_of(scope)
        name, tag = query.get("name", [""])[0], query.get("tag", ["latest"])[0]
        values: dict[str, Any] = {"name": name, "tag": tag, "problem": "", "plan": None}
        try:
            self._spec(name, tag)
        except InputError as error:
            values["problem"] = str(error)
            await self._send_plan(scope, send, query, values, 400)
            return
        plan = self._plans.find(name, tag)
        values["plan"] = None if plan is None else plan_view(plan)
        await self._send_plan(scope, send, query, values, 200)

    async def _ask_for_plan(self, scope: Scope, receive: Receive, send: Send) -> None:
        form = await form_of(scope, receive)
        name, tag = form.get("name", [""])[0], form.get("tag", ["latest"])[0]
        values: dict[str, Any] = {"name": name, "tag": tag, "plan": None}
        try:
            self._plans.ask(self._spec(name, tag))
        except InputError as error:
            await self._send_plan(scope, send, {}, {**values, "problem": str(error)}, 400)
        except QueueFull as error:
            await self._send_plan(scope, send, {}, {**values, "problem": str(error)}, 429)
        else:
            await see_other(scope, send, f"/ui/plan?{_encoded(name=name, tag=tag)}")

    async def _send_plan(
        self, scope: Scope, send: Send, query: Mapping[str, Sequence[str]], values: dict[str, Any], status: int
    ) -> None:
        values |= {
            **self._common(scope),
            "commands": self._commands(scope, values["name"] if not values["problem"] else "", values["tag"]),
            "here": f"/ui/plan?{_encoded(name=values['name'], tag=values['tag'])}",
        }
        await send_page(scope, send, "plan_part.html" if "part" in query else "plan.html", values, status=status)

    async def _all_builds(self, scope: Scope, _: Receive, send: Send) -> None:
        part = "part" in query_of(scope)
        values = {**self._common(scope), "builds": self._views(most=_MOST_BUILDS if part else 100), "heading": "h1"}
        await send_page(scope, send, "builds_part.html" if part else "builds.html", values)

    async def _one_build(self, scope: Scope, _: Receive, send: Send) -> None:
        number = scope["path_params"]["number"]
        found = [view for view in self._views(most=1000) if view.number == number]
        values = {**self._common(scope), "build": found[0] if found else None, "number": number}
        template = "build_part.html" if "part" in query_of(scope) else "build.html"
        await send_page(scope, send, template, values, status=200 if found else 404)

    async def _complete(self, scope: Scope, _: Receive, send: Send) -> None:
        typed = query_of(scope).get("q", [""])[0][:100]
        await send_json(scope, send, canonical_json({"names": await self._completed(typed)}))

    async def _completed(self, typed: str) -> list[str]:
        if self._names is None or not typed.strip():
            return []
        try:
            return list(await self._threads.run(self._names.complete, typed))
        except NixeryError as error:
            # what is typed is good without it
            _log.warning("names cannot be completed: %s", error)
            return []

    async def _found(self, typed: str, composition: Composition) -> list[tuple[str, str]]:
        """Return names that begin like what was typed, each with the query of the page that adds it."""
        return [
            (name, composition.query(packages=(*composition.packages, name))) for name in await self._completed(typed)
        ]

    def _common(self, scope: Scope) -> dict[str, Any]:
        address, encrypted = self._reached(scope)
        return {"address": address, "scheme": "https" if encrypted else "http"}

    def _reached(self, scope: Scope) -> tuple[str, bool]:
        encrypted = scope.get("scheme") == "https" if self._encrypted is None else self._encrypted
        if self._address:
            return self._address, encrypted
        said = header(scope, b"host") or ""
        return said if _HOST.fullmatch(said) else "REGISTRY", encrypted

    def _commands(self, scope: Scope, name: str, tag: str) -> list[tuple[str, str]]:
        if not name:
            return []
        address, encrypted = self._reached(scope)
        image = f"{address}/{name}:{tag}"
        plain = "" if encrypted else "--tls-verify=false "
        return [
            ("Docker", f"docker pull {image}"),
            ("Podman", f"podman pull {plain}{image}"),
            ("skopeo", f"skopeo copy {'' if encrypted else '--src-tls-verify=false '}docker://{image} oci:image"),
        ]

    def _views(self, most: int = _MOST_BUILDS) -> list[BuildView]:
        if self._builds is None:
            return []
        builds = [*reversed(self._builds.active()), *self._builds.recent()]
        # one may end between the two calls
        by_number = {build.number: build for build in builds}
        return [build_view(build, self._board) for build in list(by_number.values())[:most]]

    def _spec(self, name: str, tag: str) -> ImageSpec:
        spec = self._parse(name, tag)
        named = any(word in META_PACKAGES and META_PACKAGES[word].platform for word in name.split("/"))
        return attrs.evolve(spec, platform=self._platforms[0]) if self._platforms and not named else spec


def _platform_choices(platforms: Sequence[Platform]) -> list[tuple[str, str]]:
    usual = " and ".join(str(platform) for platform in platforms) or "linux/amd64"
    choices = [("", f"{usual} (usual)")]
    return choices + [(word, str(META_PACKAGES[word].platform)) for word in sorted(PLATFORM_WORDS)]


def _encoded(**values: str) -> str:
    return urllib.parse.urlencode(values)


async def _static(scope: Scope, _: Receive, send: Send) -> None:
    await send_static(scope, send, scope["path_params"]["name"])

"""Hypothesis against every route of the dashboard, signed in as a browser is.

Nothing of the dashboard is listed here: its routes are those of the application; what stands in their paths, the fields
of forms and what may be in them are learned from the pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import httpx2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from starlette.routing import Route

from safelight.errors import Conflict
from safelight.keys import Scope

from .door import Door

Pairs = list[tuple[str, str]]

ODD = (
    *("+2", " 8 ", "https://example.com/hook"),
    *("", " ", "\0", "a\0b", "\ud800", "\u202e", "\r\n", "é" * 200, "x" * 5000, "٣", "0x10", "1_000"),
    *("0", "-1", "1", "64", "2147483647", "2147483648", "9" * 400, "1e308", "-1e308", "nan", "inf", "0.1", "None"),
    *("..", "../../etc/passwd", "/", "//evil.example", "%00", "%", "{}", "{{7*7}}", "<script>", "'; --", "http://["),
)
"""What forms are broken with."""

TYPED = {"url": "https://example.com/hook", "number": "1"}
"""What is typed where a browser wants something, by the type of the field."""

NO_FORMS = (b"\xff", b"%ff=%fe", b"&&==&", b"a=1&" * 101, b"a=" + b"x" * 300_000)
"""Bodies that are none, or too much."""

ACCEPTED = ("text/html", "text/html", "application/json", "text/event-stream")
NUM_KNOWN = 20
SLOW_SECONDS = 2.0
"""What takes this long, because it starts a process, is asked once."""

FORM = "application/x-www-form-urlencoded"
SIGN_IN = "/dashboard/sign-in"

PARAMETER = re.compile(r"\{[^}]+\}")
UNCHECKED: dict[str, Any] = {"suppress_health_check": list(HealthCheck)}
TEXTS = st.sampled_from(ODD) | st.text(max_size=40)


class Page(HTMLParser):
    """The forms of a page, each with its address and what is in its fields, and the addresses it names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[tuple[str, Pairs]] = []
        self.addresses: list[str] = []
        self.values: set[str] = set()
        self._choice: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("href", "src", "action") if name in found]
        self.values |= {found["value"]} if "value" in found else set()
        if tag == "form":
            self.forms.append((found.get("action", ""), []))
        elif tag in ("input", "textarea", "button") and "name" in found:
            typed = TYPED.get(found.get("type", ""), "a lamp") if "required" in found else ""
            self._add(found["name"], found.get("value") or typed)
        elif tag == "select":
            self._choice = found.get("name")
        elif tag == "option" and self._choice:
            # A choice stands at its first until somebody chooses.
            self._add(self._choice, found.get("value", ""))
            self._choice = None

    def _add(self, name: str, value: str) -> None:
        if self.forms:
            self.forms[-1][1].append((name, value))


@dataclass(frozen=True, slots=True)
class Target:
    """A method of a route."""

    method: str
    route: Route = field(compare=False)
    path: str

    @property
    def places(self) -> list[str]:
        """Its path up to each of its parameters: what stands there is the same for all routes that go on from it."""
        return [self.path[: found.end()] for found in PARAMETER.finditer(self.path)]

    def matches(self, address: str) -> tuple[str, ...] | None:
        """What stands at the parameters of the route, where `address` is one of its."""
        found = self.route.path_regex.match(urlsplit(address).path)
        return found and tuple(unquote(word) for word in found.groups())


def targets_of(routes: Iterable[Any]) -> Iterator[Target]:
    """Everything that can be asked of the dashboard."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from targets_of(included.routes)
        elif isinstance(route, Route) and route.path.startswith("/dashboard"):
            yield from (Target(method, route, route.path) for method in sorted(route.methods or ()))


@dataclass(frozen=True, slots=True)
class Ask:
    """What is sent. `places` go into the path, a number standing for something known; `raw` is a body of its own.

    `is_own`: in one of the forms that pages had, with `fills` where it was empty and some fields, by place, `changed`.
    """

    places: Sequence[int | str] = (0, 0)
    is_own: bool = True
    which: int = 0
    fills: Sequence[str] = ("",)
    changed: Sequence[tuple[int, str]] = ()
    pairs: Sequence[tuple[str, str]] = ()
    raw: bytes | None = None
    accept: str = "text/html"


def _remember(known: deque[Any], seen: object) -> None:
    """What was seen last is there, what was not seen for long may be gone."""
    with contextlib.suppress(ValueError):
        known.remove(seen)
    known.append(seen)


def _memory() -> defaultdict[Any, deque[Any]]:
    return defaultdict(lambda: deque(maxlen=NUM_KNOWN))


@dataclass
class Visitor:
    """An administrator's browser, and what it has seen: what stood at the parameters of routes, and forms, by where
    they go."""

    door: Door
    client: httpx2.AsyncClient
    known: defaultdict[str, deque[str]] = field(default_factory=_memory)
    forms: defaultdict[Target, deque[Pairs]] = field(default_factory=_memory)
    names: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    seconds: Counter[Target] = field(default_factory=Counter)
    answers: defaultdict[Target, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[str] = field(default_factory=list)
    key: str = "none"

    @cached_property
    def targets(self) -> list[Target]:
        return list(targets_of(self.door.app.routes))

    async def look_around(self) -> None:
        """See every page, and then every page that these lead to."""
        await self.sign_in()
        await self.furnish()
        for target in [*self.targets, *self.targets]:
            if target.method == "GET":
                await self.send(target, Ask())

    async def furnish(self) -> None:
        """What was undone is there again: something deployed, a run that is drawn, an endpoint that is told of it."""
        for deployment in self.door.deployments:
            await self.door.store.deployments.deploy(deployment)
        with contextlib.suppress(Conflict):
            await self.door.store.webhook_endpoints.create("https://example.com/")
        form = {"deployment": self.door.deployments[0].name, "prompt": "a lamp", "num_inference_steps": "2"}
        begun = await self.client.post("/dashboard/playground", data=form)
        self._learn(begun)
        # Its page comes when there is something on it.
        await self.client.get(begun.headers.get("location", "/dashboard") + "/events")

    async def sign_in(self) -> None:
        """With another key where the last one was revoked."""
        if (await self.client.post(SIGN_IN, data={"key": self.key})).status_code != 303:
            name = f"admin {time.monotonic_ns()}"
            _, self.key = await self.door.store.keys.create(name, scopes=frozenset({Scope.ADMIN}))
            await self.client.post(SIGN_IN, data={"key": self.key})

    async def send(self, target: Target, ask: Ask) -> None:
        if self.seconds[target] > SLOW_SECONDS * self.answers[target].total() > 0:
            return
        began, path = time.monotonic(), self._path(target, ask.places)
        form = urlencode(self._filled(target, ask), errors="surrogatepass")
        if target.method == "GET":
            answer = await self.client.get(f"{path}?{form}", headers={"Accept": ask.accept})
        else:
            headers = {"Accept": ask.accept, "Content-Type": FORM}
            content = form.encode() if ask.raw is None else ask.raw
            answer = await self.client.request(target.method, path, content=content, headers=headers)
        self.seconds[target] += time.monotonic() - began
        self.answers[target][answer.status_code] += 1
        if answer.status_code >= 500:
            self.faults.append(f"{target.method} {path} with {ask.raw or form!r}: {answer.status_code}")
        self._learn(answer)
        if answer.status_code == 401 or answer.headers.get("location", "").startswith(SIGN_IN):
            await self.sign_in()

    def _path(self, target: Target, places: Sequence[int | str]) -> str:
        path = target.path
        for place, parameter in zip(places, target.places, strict=False):
            known = self.known[parameter]
            word = known[-1 - place % len(known)] if isinstance(place, int) and known else str(place)
            path = PARAMETER.sub(lambda _, word=word: quote(word, safe="", errors="surrogatepass"), path, count=1)
        return path

    def _filled(self, target: Target, ask: Ask) -> Pairs:
        forms = self.forms[target]
        if not ask.is_own or not forms:
            return list(ask.pairs)
        kept = [pair for pair in forms[-1 - ask.which % len(forms)] if pair[0] not in dict(ask.pairs)]
        filled = [(name, value or fill) for (name, value), fill in zip(kept, itertools.cycle(ask.fills), strict=False)]
        for place, value in ask.changed if filled else ():
            filled[place % len(filled)] = filled[place % len(filled)][0], value
        return [*filled, *ask.pairs]

    def _learn(self, answer: httpx2.Response) -> None:
        addresses = [answer.headers.get("location", "")]
        if answer.headers.get("content-type", "").startswith("text/html"):
            page = Page(answer.text)
            addresses += page.addresses
            self.values |= page.values
            for address, pairs in page.forms:
                self.names |= {name for name, _ in pairs}
                for target in self.targets:
                    if target.matches(address or answer.url.path) is not None:
                        _remember(self.forms[target], pairs)
        for address in addresses:
            query = parse_qsl(urlsplit(address).query)
            self.names |= {name for name, _ in query}
            for target in self.targets:
                found = target.matches(address)
                if query and found is not None:
                    _remember(self.forms[target], query)
                for place, word in zip(target.places, found or (), strict=False):
                    _remember(self.known[place], word)


def asks_of(visitor: Visitor) -> st.SearchStrategy[Ask]:
    """Forms with fields that pages have and others, with values that pages have and others."""
    names = st.sampled_from(sorted(visitor.names)) | st.text(max_size=10)
    values = st.sampled_from(sorted(visitor.values)) | TEXTS
    places = st.just(0) | st.integers(0, NUM_KNOWN - 1)
    return st.builds(
        Ask,
        places=st.tuples(places, places) | st.tuples(places | TEXTS, places | TEXTS),
        is_own=st.booleans(),
        which=places,
        fills=st.just(("",)) | st.lists(values, min_size=1, max_size=5),
        changed=st.lists(st.tuples(st.integers(0, NUM_KNOWN), values), max_size=3),
        pairs=st.just(()) | st.lists(st.tuples(names, values), max_size=6),
        raw=st.sampled_from([*([None] * 4 * len(NO_FORMS)), *NO_FORMS]),
        accept=st.sampled_from(ACCEPTED),
    )


async def fuzz_dashboard(door: Door, url: str, *, num_asks: int, seed: int | None = None) -> Visitor:
    """Ask everything of the dashboard so many times."""
    loop = asyncio.get_running_loop()
    async with httpx2.AsyncClient(base_url=url, headers={"Origin": url}, timeout=60, trust_env=False) as client:
        visitor = Visitor(door, client)
        await visitor.look_around()
        turns = itertools.cycle([None, *visitor.targets])

        @seeded(seed if seed is not None else secrets.randbits(32))
        # What one request finds depends on those before it, so there is nothing to make smaller.
        @settings(
            max_examples=num_asks * (1 + len(visitor.targets)),
            phases=[Phase.generate],
            deadline=None,
            database=None,
            **UNCHECKED,
        )
        @given(asks_of(visitor))
        def ask_in_turn(ask: Ask) -> None:
            target = next(turns)
            work = visitor.furnish() if target is None else visitor.send(target, ask)
            asyncio.run_coroutine_threadsafe(work, loop).result()

        await asyncio.to_thread(ask_in_turn)
    return visitor

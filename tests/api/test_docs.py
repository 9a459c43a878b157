"""docs/errors.md and docs/http.md say what the code does, and leave nothing out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Route

from safelight import errors
from safelight.api.dialects import native
from safelight.api.errors import STATUSES
from safelight.api.openapi import PREDICT_BODY
from safelight.config import ServerSettings
from safelight.errors import SafelightError
from safelight.runs import RunEventKind, SamplerName

ROOT = Path(__file__).parent.parent.parent
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
HTTP = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
CODE = re.compile(r"[a-z]+(_[a-z]+)+")


def documented_codes() -> dict[str, list[str]]:
    """Code -> the other cells of its row."""
    rows = (line.strip("|").split("|") for line in ERRORS.splitlines() if line.startswith("| `"))
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


def codes_of_tree(kind: type[SafelightError] = SafelightError) -> set[str]:
    """The codes of the server: the client adds some of its own where it is imported."""
    below = [child for child in kind.__subclasses__() if not child.__module__.startswith("safelight.client")]
    return {kind.code}.union(*map(codes_of_tree, below))


def codes_in_sources() -> set[str]:
    """Every literal code in a call that makes an error: `code=`, `RunError(code, ...)`, `_failed(code, ...)`."""
    found: set[str] = set()
    for path in (ROOT / "safelight").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found |= _codes_of_call(node)
    return found


def _codes_of_call(call: ast.Call) -> set[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    values = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    if name in {"RunError", "_failed", "_fail"}:
        values += call.args
    texts = {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    return {text for text in texts if CODE.fullmatch(text)}


def test_every_code_is_documented_once_with_meaning_and_remedy():
    documented = documented_codes()
    assert ERRORS.count("\n| `") == len(documented)
    assert codes_of_tree() | codes_in_sources() | set(STATUSES) == set(documented)
    assert all(all(cells) for cells in documented.values())


def test_every_status_in_the_document_is_the_one_that_is_sent():
    for code, cells in documented_codes().items():
        if code in STATUSES:
            assert cells[0] == str(STATUSES[code][0]), code
        elif len(cells) == 3:
            assert cells[0] in {"404", "500"}, code


def test_the_error_tree_is_drawn_as_it_is():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, SafelightError)
    }
    assert drawn == classes - {"SafelightError"}


def _is_public(route: object) -> bool:
    return isinstance(route, Route) and (route.include_in_schema or route.path == "/openapi.json")


async def test_every_route_has_a_section_with_a_curl_that_fits_it(house):
    app: FastAPI = house.app
    routes = {(route.path, method) for route in app.routes if _is_public(route) for method in route.methods - {"HEAD"}}
    sections = re.split(r"^### ", HTTP, flags=re.MULTILINE)[1:]
    found = set()
    for section in sections:
        method, path = re.match(r"`(\w+) (\S+)`", section).groups()
        found.add((path, method))
        (command, *_) = re.findall(r"^curl .*?(?:[^\\]$)", section, flags=re.MULTILINE | re.DOTALL)
        url = re.search(r'"\$URL(/[^"?]*)', command)[1]
        assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path).replace(".", r"\."), url), command
        said = re.search(r"-X (\w+)", command)
        assert method == (said[1] if said else "POST" if " -d " in command or "--data" in command else "GET")
    assert found == routes


def test_every_field_sampler_and_event_is_named():
    for name in (*PREDICT_BODY["properties"], *SamplerName, *RunEventKind):
        assert f"`{name}`" in HTTP, name
    assert native.to_params({"prompt": "x"}).wrong == ()


def test_the_nginx_example_lets_through_what_the_server_takes_and_tells_it_of_https():
    [example] = re.findall(r"```nginx\n(.*?)```", OPERATING, re.DOTALL)
    usual = ServerSettings()
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", example)
    assert int(megabytes) * 2**20 >= usual.max_body_bytes + usual.max_picture_bytes
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", example)
    assert int(seconds) > usual.sync_timeout_seconds
    assert {"Host", "X-Forwarded-For", "X-Forwarded-Proto"} <= set(re.findall(r"proxy_set_header (\S+)", example))

"""Requests to copy: curl, Python and JavaScript, each of which works when pasted. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from safelight.deployments import Defaults
from safelight.runs import RunParams

EXAMPLE_PROMPT = "a photo of an astronaut riding a horse on mars."


@dataclass(frozen=True, slots=True)
class Snippet:
    """One way to ask for a picture."""

    language: str
    text: str


def predict_snippets(address: str, body: Mapping[str, object], *, key: str | None = None) -> tuple[Snippet, ...]:
    """How to send `body` to the predict address, which is whole. Without a key, it is read from the environment."""
    return (
        Snippet("curl", curl(address, body, key=key)),
        Snippet("Python", _python(address, body, key=key)),
        Snippet("JavaScript", _javascript(address, body, key=key)),
    )


def curl(address: str, body: Mapping[str, object], *, key: str | None = None) -> str:
    """A line for a shell that leaves picture.png behind."""
    header = shlex.quote(f"Authorization: {key}") if key else '"Authorization: $SAFELIGHT_KEY"'
    decode = (
        "import base64, json, sys; open('picture.png', 'wb').write(base64.b64decode(json.load(sys.stdin)['result'][0]))"
    )
    return (
        f"curl --fail-with-body --silent --show-error {shlex.quote(address)} \\\n"
        f"  -H {header} \\\n"
        f'  -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))} \\\n"
        f'  | python3 -c "{decode}"'
    )


def body_of(params: RunParams, defaults: Defaults | None = None, *, seed: int | None = None) -> dict[str, object]:
    """The body that asks for these parameters again, without what the deployment would choose anyway. The
    picture that a run began from is not in it."""
    body: dict[str, object] = {"prompt": params.prompt}
    for name in Defaults.__dataclass_fields__:
        value = getattr(params, name)
        if defaults is None or value != getattr(defaults, name):
            body[name] = value.value if isinstance(value, StrEnum) else value
    if params.loras:
        body["loras"] = [asdict(use) for use in params.loras]
    if params.deterministic:
        body["deterministic"] = True
    if seed is not None:
        body |= {"seed": seed}
        body.pop("num_images_per_prompt", None)
    return body


def _python(address: str, body: Mapping[str, object], *, key: str | None) -> str:
    authorization = json.dumps(key) if key else 'os.environ["SAFELIGHT_KEY"]'
    imports = "import base64, json, urllib.request" if key else "import base64, json, os, urllib.request"
    return f"""{imports}

request = urllib.request.Request(
    {json.dumps(address)},
    data=json.dumps({_python_dict(body)}).encode(),
    headers={{"Authorization": {authorization}, "Content-Type": "application/json"}},
)
with urllib.request.urlopen(request) as answer:
    result = json.load(answer)["result"]
open("picture.png", "wb").write(base64.b64decode(result[0]))"""


def _javascript(address: str, body: Mapping[str, object], *, key: str | None) -> str:
    authorization = json.dumps(key) if key else "process.env.SAFELIGHT_KEY"
    return f"""import {{ writeFile }} from "node:fs/promises";

const answer = await fetch({json.dumps(address)}, {{
  method: "POST",
  headers: {{ Authorization: {authorization}, "Content-Type": "application/json" }},
  body: JSON.stringify({json.dumps(body, ensure_ascii=False)}),
}});
const {{ result }} = await answer.json();
await writeFile("picture.png", Buffer.from(result[0], "base64"));"""


def _python_dict(body: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {value!r}" for key, value in body.items()) + "}"

"""The predict dialect: its body in, the envelope out. Pure; the predict contract's rules about types are here."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import TypeVar

from safelight.api.answers import JSON, Answer
from safelight.api.params import NewParams, RunImage, shorten
from safelight.envelope import accepted_body, success_body
from safelight.errors import BodyTooLarge, FieldError, MalformedBody
from safelight.runs import LoraUse, OutputFormat, Run, SamplerName, Spacing
from safelight.sampler_names import read_sampler, read_spacing

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

MAX_DEPTH = 32
"""Deepest nesting of a body; the predict contract's own is 1."""

MAX_URL_CHARS = 2048

MAX_LORAS = 8
MAX_LORA_SCALE = 10.0

PICTURE_KEYS = ("init_image", "mask")

_LONGEST_INTEGER = 300
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}(\.0{0,300})?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,9})?")
# Nothing here can be tried twice, nor a string that does not end: one pass, whatever the body.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_PICTURES = re.compile(rb'"(?:init_image|mask)"\s*:\s*"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_RUN_IMAGE = re.compile(r"run:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9]{1,4})")
_DATA_URL = re.compile(r"^data:image/[a-z+.-]{1,20};base64,")
_DROPPED_KEYS = frozenset({"hf_token"})
_MODEL_KEYS = ("hf_model_path", "model_id")


class _Unreadable(Exception):
    """A value that is not of its field's type; the text is the rest of the sentence about it."""


def parse_body(body: bytes) -> dict[str, object]:
    """The JSON object in `body`. Raises MalformedBody for everything else, however strange."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8 text: byte {error.start} cannot be read") from error
    if _depth(text) > MAX_DEPTH:
        raise MalformedBody(f"the body is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_read_integer)
    except json.JSONDecodeError as error:
        raise MalformedBody(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(value, dict):
        raise MalformedBody('the body is JSON, but not an object; send {"prompt": "..."}')
    return value


def check_size(body: bytes, *, max_bytes: int) -> None:
    """Raises BodyTooLarge when `body` holds more than `max_bytes` beside its pictures. To be asked before it is parsed:
    many small values take long."""
    if len(body) > max_bytes and len(body) - sum(len(each[0]) for each in _PICTURES.finditer(body)) > max_bytes:
        raise BodyTooLarge(f"the body is over {max_bytes} bytes beside its pictures, which is the most that is taken")


def to_params(body: Mapping[str, object]) -> NewParams:
    """Read the keys of the predict contract. What cannot be read is in `wrong` of the answer, never raised."""
    reader = _Reader(body)
    sampler, spacing = reader.sampling()
    return NewParams(
        prompt=reader.prompt(),
        negative_prompt=reader.take("negative_prompt", _text),
        height=reader.take("height", _integer),
        width=reader.take("width", _integer),
        num_inference_steps=reader.take("num_inference_steps", _integer),
        guidance_scale=reader.take("guidance_scale", _number),
        num_images_per_prompt=reader.take("num_images_per_prompt", _integer),
        seed=reader.take("seed", _seed),
        sampler=sampler,
        spacing=spacing,
        output_format=reader.take("output_format", _output_format),
        strength=reader.take("strength", _number),
        init_image=reader.take("init_image", _picture),
        mask=reader.take("mask", _picture),
        deterministic=reader.take("deterministic", _boolean),
        loras=reader.take("loras", _loras),
        models=tuple((key, model) for key in _MODEL_KEYS if (model := reader.take(key, _text)) is not None),
        webhook_endpoint=reader.take("webhook_endpoint", _url),
        deadline_ms=reader.take("deadline_ms", _integer),
        unknown_keys=reader.unknown_keys(),
        wrong=tuple(reader.wrong),
    )


def digest(deployment_name: str, body: Mapping[str, object]) -> str:
    """What makes two requests the same for an Idempotency-Key: deployment and body, however it is spelled."""
    kept = {key: value for key, value in body.items() if key not in _DROPPED_KEYS}
    return sha256(json.dumps([deployment_name, kept], sort_keys=True).encode()).hexdigest()


def from_run(run: Run, images: Sequence[bytes]) -> Answer:
    """The envelope of a run that succeeded, with its seeds and warnings in headers."""
    seeds = ", ".join(str(image.seed) for image in run.images)
    warnings = (("Warning", f'299 safelight "{_quotable(text)}"') for text in run.warnings)
    headers = (("X-Safelight-Run-Id", run.id), ("X-Safelight-Seed", seeds), *warnings)
    return Answer(status=200, body=success_body(run, images), media_type=JSON, headers=headers)


def from_accepted(run: Run) -> Answer:
    """The answer at once of a run whose results go to a webhook."""
    return Answer(status=200, body=accepted_body(run), media_type=JSON, headers=(("X-Safelight-Run-Id", run.id),))


def from_deferred(run: Run) -> Answer:
    """The answer at once of a caller who preferred not to wait: where to ask for the run."""
    location = f"/runs/{run.id}"
    body = {"run_id": run.id, "message": f"the run is {run.status.value}; ask for it at {location}"}
    headers = (("X-Safelight-Run-Id", run.id), ("Location", location), ("Preference-Applied", "respond-async"))
    return Answer(status=202, body=json.dumps(body).encode(), media_type=JSON, headers=headers)


class _Reader:
    """Takes fields out of a body and remembers which were wrong and which were never asked for."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body
        self._taken: set[str] = set(_DROPPED_KEYS)
        self.wrong: list[FieldError] = []

    def take(self, name: str, read: Callable[[object], T]) -> T | None:
        self._taken.add(name)
        value = self._body.get(name)
        if value is None:
            return None
        try:
            return read(value)
        except _Unreadable as error:
            self.wrong.append(FieldError(name, str(error)))
            return None

    def prompt(self) -> str | None:
        if self._body.get("prompt") is None:
            self._taken.add("prompt")
            self.wrong.append(FieldError("prompt", "is required: a string that says what to draw"))
            return None
        return self.take("prompt", _text)

    def sampling(self) -> tuple[SamplerName | None, Spacing | None]:
        """The sampler and the spacing, which a sampler's name may hold: "DPM++ 2M Karras"."""
        sampler, held = self.take("sampler", _sampler) or (None, None)
        spacing = self.take("spacing", _spacing)
        if held is not None and spacing not in (None, held):
            named = shorten(self._body["sampler"])
            self.wrong.append(FieldError("spacing", f"{spacing} contradicts the sampler {named}, which says {held}"))
        return sampler, held or spacing

    def unknown_keys(self) -> tuple[str, ...]:
        return tuple(key for key in self._body if key not in self._taken)


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> object:
    raise MalformedBody(f"the body is not JSON: {name} is no JSON number")


def _read_integer(digits: str) -> int | float:
    """An int, or infinity where Python would refuse or take long to convert it."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else math.inf


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Unreadable(f"{shorten(value)} is not a string")
    if "\0" in value or not _is_encodable(value):
        raise _Unreadable("holds NUL or half a surrogate pair, which are not text; leave them out")
    return value


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float) and math.isfinite(value):
        if value.is_integer():
            return int(value)
        raise _Unreadable(f"{shorten(value)} is not a whole number; the nearest is {round(value)}")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _Unreadable(f"{shorten(value)} is not a whole number")


def _number(value: object) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _Unreadable(f"{shorten(value)} is not a finite number")


def _boolean(value: object) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if isinstance(value, bool):
        return value
    raise _Unreadable(f"{shorten(value)} is not true or false")


def _seed(value: object) -> int | None:
    seed = _integer(value)
    return seed if seed >= 0 else None


def _sampler(value: object) -> tuple[SamplerName, Spacing | None]:
    return _named(read_sampler, value)


def _spacing(value: object) -> Spacing:
    return _named(read_spacing, value)


def _named(read: Callable[[str], T], value: object) -> T:
    try:
        return read(value if isinstance(value, str) else "")
    except ValueError as error:
        raise _Unreadable(f"{shorten(value)} {error}") from error


def _output_format(value: object) -> OutputFormat:
    return _one_of(OutputFormat, value)


def _one_of(names: type[E], value: object) -> E:
    if isinstance(value, str) and value.strip().lower() in set(names):
        return names(value.strip().lower())
    raise _Unreadable(f"{shorten(value)} is not one of {', '.join(names)}")


def _loras(value: object) -> tuple[LoraUse, ...]:
    """`[{"name": "...", "scale": 1.0}]`; without a scale it works fully."""
    if not isinstance(value, list) or len(value) > MAX_LORAS:
        raise _Unreadable(f"{shorten(value)} is not a list of at most {MAX_LORAS} objects with name and scale")
    uses = tuple(_lora(each) for each in value)
    if len({use.name for use in uses}) < len(uses):
        raise _Unreadable(f"{shorten(value)} names a LoRA twice; add its scales up")
    return uses


def _lora(value: object) -> LoraUse:
    if not isinstance(value, dict) or not {"name"} <= value.keys() <= {"name", "scale"}:
        raise _Unreadable(f"{shorten(value)} is not an object with name and scale, and nothing else")
    scale = _number(1.0 if value.get("scale") is None else value["scale"])
    if abs(scale) > MAX_LORA_SCALE:
        raise _Unreadable(f"the scale {scale} is not between -{MAX_LORA_SCALE} and {MAX_LORA_SCALE}")
    return LoraUse(_text(value["name"]), scale)


def _picture(value: object) -> bytes | RunImage:
    """Base64, with or without the head of a data URL; or `run:<id>/<index>`."""
    if isinstance(value, str) and (named := _RUN_IMAGE.fullmatch(value.strip())):
        return RunImage(named[1], int(named[2]))
    try:
        return base64.b64decode(_DATA_URL.sub("", _text(value), count=1), validate=True)
    except (ValueError, _Unreadable) as error:
        raise _Unreadable("is neither base64 of a PNG, JPEG or WebP picture nor run:<id>/<index>") from error


def _url(value: object) -> str:
    text = _text(value)
    if len(text) > MAX_URL_CHARS:
        raise _Unreadable(f"{len(text)} characters are too many for a URL; at most {MAX_URL_CHARS} are taken")
    return text


def _quotable(text: str) -> str:
    """`text` as it may stand in a quoted string of a header: one line of printable ASCII."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    return plain[:500].replace("\\", "\\\\").replace('"', '\\"')

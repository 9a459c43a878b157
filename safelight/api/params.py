"""What a dialect read from a request, and how a deployment completes and judges it. Pure; the same for
every dialect."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TypeVar

from safelight.catalog import CATALOG
from safelight.deployments import Deployment
from safelight.errors import FieldError, NotFound
from safelight.inputs import InputShape
from safelight.keys import Allowance
from safelight.runs import MAX_SEED, LoraUse, OutputFormat, RunParams, SamplerName, Spacing

DEFAULT_STRENGTH = 0.8

FRESH_SEEDS = 2**32
"""A seed that nobody named is drawn below this."""

MAX_DEADLINE_MS = 7 * 86_400_000

_MAX_SHOWN_CHARS = 60
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image of an earlier run."""

    run_id: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewParams:
    """What a caller asked. None means the deployment's default; of `seed`, that a fresh one is drawn.

    `wrong` holds the fields that could not be read at all, `unknown_keys` what was ignored.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    num_images_per_prompt: int | None = None
    seed: int | None = None
    sampler: SamplerName | None = None
    spacing: Spacing | None = None
    output_format: OutputFormat | None = None
    deterministic: bool | None = None
    strength: float | None = None
    init_image: bytes | RunImage | None = None
    mask: bytes | RunImage | None = None
    loras: tuple[LoraUse, ...] | None = None
    models: tuple[tuple[str, str], ...] = ()
    webhook_endpoint: str | None = None
    deadline_ms: int | None = None
    unknown_keys: tuple[str, ...] = ()
    wrong: tuple[FieldError, ...] = ()


def complete(
    asked: NewParams, deployment: Deployment, *, fresh_seed: int, picture: InputShape | None = None
) -> RunParams:
    """`asked` with the deployment's defaults where it names nothing. `picture` is what the run begins from: sides that
    are not named are the nearest to its own."""
    defaults = deployment.defaults
    sides = (defaults.height, defaults.width)
    if picture is not None:
        sides = (deployment.limits.nearest_multiple(picture.height), deployment.limits.nearest_multiple(picture.width))
    sampler = _first(asked.sampler, defaults.sampler)
    # The default spacing is for samplers that take it; nobody is refused for what he did not name.
    spacing = defaults.spacing if defaults.spacing in sampler.spacings else Spacing.AUTOMATIC
    return RunParams(
        prompt=asked.prompt or "",
        negative_prompt=_first(asked.negative_prompt, defaults.negative_prompt),
        height=_first(asked.height, sides[0]),
        width=_first(asked.width, sides[1]),
        num_inference_steps=_first(asked.num_inference_steps, defaults.num_inference_steps),
        guidance_scale=_first(asked.guidance_scale, defaults.guidance_scale),
        num_images_per_prompt=_first(asked.num_images_per_prompt, defaults.num_images_per_prompt),
        seed=_first(asked.seed, fresh_seed),
        sampler=sampler,
        spacing=_first(asked.spacing, spacing),
        output_format=_first(asked.output_format, defaults.output_format),
        deterministic=bool(asked.deterministic),
        strength=None if picture is None else _first(asked.strength, DEFAULT_STRENGTH),
        has_mask=asked.mask is not None,
        loras=_first(asked.loras, ()),
    )


def find_wrong(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:
    """Every wrong field of a request, one entry each: unreadable, over a limit, or naming another model."""
    over = (
        *deployment.limits.check(params),
        *_check_seed(params, deployment),
        *_check_models(asked, deployment),
        *([] if "init_image" in {error.field for error in asked.wrong} else _check_start(asked)),
        *_check_loras(params, deployment),
    )
    unreadable = {error.field for error in asked.wrong}
    judged = (*over, *_check_deadline(asked.deadline_ms))
    return (*asked.wrong, *(error for error in judged if error.field not in unreadable))


def find_unfit(params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:
    """The sides of a picture that is too large for the memory of the worker that has the deployment's model."""
    most = deployment.max_pixels
    if most is None or params.height * params.width <= most:
        return ()
    multiple = deployment.limits.side_multiple
    rule = f"does not fit into the memory of the device, which draws {most} pixels"
    return tuple(
        FieldError(
            field,
            f"{params.height} x {params.width} {rule}; with the other side as it is"
            f" {most // other // multiple * multiple} does",
        )
        for field, other in (("height", params.width), ("width", params.height))
    )


def find_unaffordable(params: RunParams, allowance: Allowance) -> tuple[FieldError, ...]:
    """What this key can never ask for in one request, however long it waits."""
    per_day, per_minute = allowance.images_per_day, allowance.pixel_steps_per_minute
    if per_day is not None and params.num_images_per_prompt > per_day:
        rule = f"{params.num_images_per_prompt} is more than this key may ask for in a whole day; the most is {per_day}"
        return (FieldError("num_images_per_prompt", rule),)
    if per_minute is not None and params.pixel_steps > per_minute:
        rule = (
            f"{params.num_inference_steps} steps of this size and number of images are {params.pixel_steps} pixel-steps"
        )
        return (FieldError("num_inference_steps", f"{rule}; this key may draw {per_minute} in a minute"),)
    return ()


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


def _check_deadline(deadline_ms: int | None) -> tuple[FieldError, ...]:
    if deadline_ms is None or 1 <= deadline_ms <= MAX_DEADLINE_MS:
        return ()
    nearest = min(max(deadline_ms, 1), MAX_DEADLINE_MS)
    rule = f"a number of milliseconds between 1 and {MAX_DEADLINE_MS}"
    return (FieldError("deadline_ms", f"{deadline_ms} is not {rule}; the nearest is {nearest}"),)


def _check_seed(params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:
    num_images = min(max(params.num_images_per_prompt, 1), deployment.limits.max_images)
    largest = MAX_SEED - (num_images - 1)
    if params.seed <= largest:
        return ()
    rule = (
        f"a whole number between 0 and {largest} (image i uses seed + i, and seeds are exact in JSON up to {MAX_SEED})"
    )
    return (FieldError("seed", f"{params.seed} is not {rule}; the nearest is {largest}"),)


def _check_start(asked: NewParams) -> tuple[FieldError, ...]:
    found = []
    if asked.strength is not None and not 0.0 < asked.strength <= 1.0:
        nearest = "1.0" if asked.strength > 1.0 else "0.01, which changes little"
        found.append(FieldError("strength", f"{asked.strength} is not over 0 and at most 1; the nearest is {nearest}"))
    elif asked.strength is not None and asked.init_image is None:
        found.append(FieldError("strength", "says how much an init_image is changed, and there is none; send one"))
    if asked.mask is not None and asked.init_image is None:
        found.append(FieldError("mask", "says where an init_image is changed, and there is none; send one"))
    return tuple(found)


def _check_models(asked: NewParams, deployment: Deployment) -> tuple[FieldError, ...]:
    names = _names_of_model(deployment)
    return tuple(
        FieldError(field, f"{shorten(model)} is not the model of {deployment.name}, which is {deployment.model!r}")
        for field, model in asked.models
        if model.casefold() not in names
    )


def _check_loras(params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:
    known = deployment.serving.loras
    unknown = [use.name for use in params.loras if use.name not in known]
    if not unknown:
        return ()
    offered = f"it has {', '.join(known)}" if known else "it has none"
    return (FieldError("loras", f"{shorten(unknown[0])} is no LoRA of {deployment.name}: {offered}"),)


def _names_of_model(deployment: Deployment) -> frozenset[str]:
    names = [deployment.model]
    if deployment.model in CATALOG:
        names += [source.repository for source in CATALOG[deployment.model].hub]
    return frozenset(name.casefold() for name in names)


def is_id(value: str) -> bool:
    """Whether `value` reads like the id of a run, an endpoint or a delivery."""
    return _ID.fullmatch(value) is not None


def checked_id(value: str, kind: str) -> str:
    """`value`, an id. Raises NotFound for what is none, as for an id of a `kind` that is not there."""
    if not is_id(value):
        raise NotFound(f"there is no {kind} {shorten(value)}", code=f"{kind}_not_found")
    return value


def shorten(value: object) -> str:
    """A JSON value as a message may show it: on one line, printable, cut when long."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."

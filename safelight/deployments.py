"""A deployment: a model at a revision under a name, with its defaults and its limits. Pure; no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from safelight.errors import FieldError, InvalidFields
from safelight.runs import OutputFormat, RunParams, SamplerName, Spacing

DREAMBOOTH_ALIAS = "dreambooth-webhook"
"""A name that clients of the predict contract ask for: a deployment of `stable-diffusion` answers to it, unless
something is deployed under it."""

RESERVED_NAMES = frozenset(
    {"runs", "healthz", "readyz", "docs", "redoc", "openapi", "metrics", "dashboard", "static", "v1", "v2", "v3"}
    | {"api", "keys", "deployments", "webhooks", "models", "predict", "sdapi", "assets", "favicon"}
)
"""Names the server's own paths need."""

_NAME = re.compile(r"[a-z0-9-]{1,63}")


class DeploymentStatus(StrEnum):
    COLD = "cold"
    STARTING = "starting"
    ACTIVE = "active"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets where it names nothing."""

    height: int = 512
    width: int = 512
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    num_images_per_prompt: int = 1
    negative_prompt: str = ""
    sampler: SamplerName = SamplerName.EULER
    spacing: Spacing = Spacing.AUTOMATIC
    output_format: OutputFormat = OutputFormat.PNG


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask at most. Sides in pixels."""

    side_multiple: int = 8
    min_side: int = 64
    max_side: int = 1024
    max_pixels: int = 1024 * 1024
    max_steps: int = 150
    max_images: int = 8
    max_guidance_scale: float = 50.0
    max_prompt_chars: int = 4000

    def check(self, params: RunParams) -> tuple[FieldError, ...]:
        """Every field of `params` that is over a limit, with the value, the rule and the nearest legal value."""
        found = [self._side("height", params.height), self._side("width", params.width)]
        found.append(self._steps(params))
        found.append(_check_spacing(params))
        found.append(_between("num_images_per_prompt", params.num_images_per_prompt, 1, self.max_images))
        found.append(_between("guidance_scale", params.guidance_scale, 0.0, self.max_guidance_scale))
        found.append(self._text("prompt", params.prompt))
        found.append(self._text("negative_prompt", params.negative_prompt))
        if not any(found[:2]) and params.height * params.width > self.max_pixels:
            found.append(self._area(params))
        return tuple(error for error in found if error is not None)

    def nearest_multiple(self, side: int) -> int:
        """The nearest that the models can draw, however large."""
        return max(1, int(side / self.side_multiple + 0.5)) * self.side_multiple

    def _side(self, name: str, value: int) -> FieldError | None:
        lowest = -(-self.min_side // self.side_multiple) * self.side_multiple
        highest = max(lowest, self.max_side // self.side_multiple * self.side_multiple)
        legal = min(max(self.nearest_multiple(value), lowest), highest)
        if value == legal:
            return None
        rule = f"a multiple of {self.side_multiple} between {self.min_side} and {self.max_side}"
        return FieldError(name, f"{value} is not {rule}; the nearest is {legal}")

    def _steps(self, params: RunParams) -> FieldError | None:
        field, steps, most = "num_inference_steps", params.num_inference_steps, params.sampler.max_steps
        if most >= self.max_steps or not steps > most:
            return _between(field, steps, 1, self.max_steps)
        return FieldError(
            field, f"{steps} is more than the {most} steps that {params.sampler} has; the nearest is {most}"
        )

    def _area(self, params: RunParams) -> FieldError:
        legal = self.max_pixels // params.width // self.side_multiple * self.side_multiple
        rule = f"at most {self.max_pixels} pixels are drawn"
        return FieldError("height", f"{params.height} x {params.width} is too large: {rule}; at this width {legal} is")

    def _text(self, name: str, value: str) -> FieldError | None:
        if len(value) <= self.max_prompt_chars:
            return None
        return FieldError(name, f"{len(value)} characters are too many; at most {self.max_prompt_chars} are read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a deployment's model is kept on a device, and how it reads prompts.

    A pinned model is not moved out for others; one with a cooldown is unloaded after so many seconds without a run (0:
    never). Long prompts are read in parts of the text encoder's window; prompt weights are written `(word:1.2)`.
    `lora_files` are names with their files.
    """

    pin: bool = False
    cooldown_seconds: float = 0.0
    long_prompts: bool = False
    prompt_weights: bool = False
    lora_files: tuple[tuple[str, str], ...] = ()

    @property
    def loras(self) -> tuple[str, ...]:
        """The names that requests may use."""
        return tuple(name for name, _ in self.lora_files)

    def check(self) -> tuple[FieldError, ...]:
        """What is wrong with it."""
        longest = 30 * 24 * 3600.0
        wrong = _between("cooldown_seconds", self.cooldown_seconds, 0.0, longest)
        return () if wrong is None else (wrong,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One version of a deployment. `model` is an identifier of the catalogue, a hub id or a folder."""

    name: str
    version: int
    model: str
    revision: str | None = None
    defaults: Defaults = field(default_factory=Defaults)
    limits: Limits = field(default_factory=Limits)
    serving: Serving = field(default_factory=Serving)
    embed_metadata: bool = True
    created_at: float = 0.0
    status: DeploymentStatus = DeploymentStatus.COLD
    status_reason: str = ""
    load_seconds: float | None = None
    max_pixels: int | None = None


def check_name(name: str) -> None:
    """Raises InvalidFields when `name` cannot be a deployment's."""
    if not _NAME.fullmatch(name):
        raise InvalidFields([FieldError("name", f"{name!r} is not 1 to 63 of a-z, 0-9 and -")])
    if name in RESERVED_NAMES:
        raise InvalidFields([FieldError("name", f"{name!r} is reserved for the server's own paths; take another")])


def _check_spacing(params: RunParams) -> FieldError | None:
    taken = params.sampler.spacings
    if params.spacing in taken:
        return None
    nearest = Spacing.TRAILING if Spacing.TRAILING in taken else Spacing.AUTOMATIC
    rule = f"one that {params.sampler} can be asked for with ({', '.join(taken)})"
    return FieldError("spacing", f"{params.spacing} is not {rule}; the nearest is {nearest}")


def _between(name: str, value: float, low: float, high: float) -> FieldError | None:
    if low <= value <= high:
        return None
    nearest = low if not value > high else high
    return FieldError(name, f"{value} is not between {low} and {high}; the nearest is {nearest}")

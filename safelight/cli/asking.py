"""The options with which `generate` and `predict` name what to draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from safelight.errors import FieldError, InvalidFields
from safelight.runs import MAX_SEED, OutputFormat, SamplerName, Spacing
from safelight.sampler_names import read_sampler, read_spacing

PromptArgument = Annotated[str, typer.Argument(help="What to draw.")]
NegativePromptOption = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="What to keep out.")]
HeightOption = Annotated[int | None, typer.Option(help="Height in pixels.")]
WidthOption = Annotated[int | None, typer.Option(help="Width in pixels.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps.")]
GuidanceOption = Annotated[float | None, typer.Option("--guidance-scale", help="How closely to follow the prompt.")]
ImagesOption = Annotated[int | None, typer.Option("--images", help="How many pictures.")]
SeedOption = Annotated[int | None, typer.Option(max=MAX_SEED, help="Seed of the first picture. Unset: a fresh one.")]
SamplerOption = Annotated[str | None, typer.Option(help="Sampler, by any of its names: euler, 'DPM++ 2M Karras', ...")]
SpacingOption = Annotated[str | None, typer.Option(help="How the steps are spread: linspace, karras, ...")]
DeterministicOption = Annotated[
    bool | None, typer.Option("--deterministic", help="Pixels that depend on nothing else that is drawn; slower.")
]
FormatOption = Annotated[OutputFormat | None, typer.Option("--format", help="File format of the pictures.")]
OutOption = Annotated[
    str, typer.Option("--out", "-o", metavar="PATH", help="Folder for the pictures, or the name of a picture file.")
]
StrengthOption = Annotated[float | None, typer.Option(help="How much of --init-image is changed: over 0, at most 1.")]
MaskOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="A picture of the same size: white is painted anew, black stays.")
]

T = TypeVar("T")


def sampling(sampler: str | None, spacing: str | None) -> dict[str, SamplerName | Spacing | None]:
    """`sampler` and `spacing` as they were named, None where they were not. Raises InvalidFields."""
    named, held = (None, None) if sampler is None else _read("sampler", read_sampler, sampler)
    asked = None if spacing is None else _read("spacing", read_spacing, spacing)
    if held is not None and asked not in (None, held):
        raise InvalidFields([FieldError("spacing", f"{asked} contradicts the sampler {sampler!r}, which says {held}")])
    return {"sampler": named, "spacing": held or asked}


def read_picture(field: str, file: str | None) -> bytes | None:
    """A picture file as it is; None where none was named. Raises InvalidFields."""
    try:
        return None if file is None else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise InvalidFields([FieldError(field, f"{file} cannot be read: {error.strerror}")]) from error


def _read(field: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise InvalidFields([FieldError(field, f"{text!r} {error}")]) from error

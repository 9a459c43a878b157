"""The options with which `generate` and `predict` name what to draw."""

from __future__ import annotations

from typing import Annotated

import typer

from safelight.runs import MAX_SEED, OutputFormat, SamplerName

PromptArgument = Annotated[str, typer.Argument(help="What to draw.")]
NegativePromptOption = Annotated[str | None, typer.Option("--negative-prompt", "-n", help="What to keep out.")]
HeightOption = Annotated[int | None, typer.Option(help="Height in pixels.")]
WidthOption = Annotated[int | None, typer.Option(help="Width in pixels.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps.")]
GuidanceOption = Annotated[float | None, typer.Option("--guidance-scale", help="How closely to follow the prompt.")]
ImagesOption = Annotated[int | None, typer.Option("--images", help="How many pictures.")]
SeedOption = Annotated[int | None, typer.Option(max=MAX_SEED, help="Seed of the first picture. Unset: a fresh one.")]
SamplerOption = Annotated[SamplerName | None, typer.Option(help="Sampler.")]
FormatOption = Annotated[OutputFormat | None, typer.Option("--format", help="File format of the pictures.")]
OutOption = Annotated[
    str, typer.Option("--out", "-o", metavar="PATH", help="Folder for the pictures, or the name of a picture file.")
]

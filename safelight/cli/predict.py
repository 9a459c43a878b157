"""`predict`: ask a server, through the client that the package offers."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli import asking
from safelight.cli.loras import lora_uses
from safelight.cli.options import JsonOption
from safelight.cli.output import explain, say, say_json
from safelight.cli.pictures_out import PictureFolder
from safelight.cli.progress import StepBar
from safelight.errors import Unauthorized

if TYPE_CHECKING:
    from safelight.client import RunHandle


def predict(
    name: Annotated[str, typer.Argument(help="Name of the deployment.")],
    prompt: asking.PromptArgument,
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="An API key; `-` reads it from stdin.")] = None,
    out: asking.OutOption = ".",
    height: asking.HeightOption = None,
    width: asking.WidthOption = None,
    steps: asking.StepsOption = None,
    guidance_scale: asking.GuidanceOption = None,
    negative_prompt: asking.NegativePromptOption = None,
    images: asking.ImagesOption = None,
    seed: asking.SeedOption = None,
    sampler: asking.SamplerOption = None,
    spacing: asking.SpacingOption = None,
    output_format: asking.FormatOption = None,
    deterministic: asking.DeterministicOption = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME=SCALE", help="A LoRA that the deployment knows; may be repeated."),
    ] = None,
    init_image: Annotated[
        str | None, typer.Option(metavar="FILE", help="A picture to begin from: a file, or run:<id>/<index>.")
    ] = None,
    mask: asking.MaskOption = None,
    strength: asking.StrengthOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a server for pictures, show the progress, and write them. What is left out is the deployment's default."""
    from safelight.client import Client

    folder = PictureFolder(out, prompt=prompt, output_format=output_format)
    named: dict[str, Any] = {"height": height, "width": width, "num_inference_steps": steps, "seed": seed}
    named |= {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    named |= asking.sampling(sampler, spacing)
    named |= {"num_images_per_prompt": images, "output_format": folder.output_format, "deterministic": deterministic}
    named |= {"init_image": _picture("init_image", init_image), "mask": _picture("mask", mask), "strength": strength}
    named["loras"] = [asdict(use) for use in lora_uses(loras or ())] or None
    params = {field: value for field, value in named.items() if value is not None}
    folder.prepare()
    with Client(url, _key(key)) as client:
        run = client.submit(name, prompt, **params)
        _follow(run)
        result, record = run.wait(), run.get()
    written = [
        folder.write(picture, seed=one, output_format=record.params.output_format)
        for picture, one in zip(result.image_bytes, record.seeds, strict=True)
    ]
    if as_json:
        pictures = [{"path": str(path), "seed": one} for path, one in zip(written, record.seeds, strict=True)]
        say_json({"run_id": run.run_id, "run_time_ms": result.run_time_ms, "images": pictures})
        return
    for path in written:
        say(str(path))
    explain(f"run {run.run_id}: {result.run_time_ms / 1000:.1f} s of work")


def _picture(field: str, named: str | None) -> bytes | str | None:
    return named if named is not None and named.startswith("run:") else asking.read_picture(field, named)


def _follow(run: RunHandle) -> None:
    """Show what happens to the run until it has ended."""
    try:
        with StepBar() as bar:
            bar.follow(run.events())
            bar.note(*run.get().warnings)
    except KeyboardInterrupt:
        explain(f"run {run.run_id} goes on at the server; to stop it: safelight runs cancel {run.run_id}")
        raise


def _key(named: str | None) -> str:
    key = sys.stdin.readline().strip() if named == "-" else named
    if not key:
        raise Unauthorized("name an API key with --key; `safelight keys create NAME` makes one at the server")
    return key

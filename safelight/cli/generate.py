"""`generate`: draw in this process, without a server and without a data folder."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.catalog import Catalog, check_model
from safelight.catalog_file import load_catalog, weights_finder
from safelight.cli import asking
from safelight.cli.machine import look_at_torch
from safelight.cli.options import ConfigOption, JsonOption, settings_of
from safelight.cli.output import explain, say, say_json
from safelight.cli.pictures_out import PictureFolder
from safelight.cli.progress import StepBar
from safelight.config import Settings
from safelight.deployments import Defaults, Limits
from safelight.errors import InvalidFields, RunFailed
from safelight.runs import RunParams, Spacing

if TYPE_CHECKING:
    from safelight.pictures import Pixels


def generate(
    prompt: asking.PromptArgument,
    model: Annotated[
        str,
        typer.Option(
            help="Identifier from `safelight models`, a repository on this machine, a diffusers folder or a checkpoint file."
        ),
    ] = "pinhole",
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
    device: Annotated[str | None, typer.Option(help="torch device. Unset: the first GPU, else the CPU.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw PROMPT in this process and write the pictures, their parameters inside."""
    settings = settings_of(config, None)
    catalog = load_catalog(settings.catalog)
    if model not in settings.models:
        check_model(model, catalog=catalog, hf_home=settings.hf_home)
    named: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    named |= {"negative_prompt": negative_prompt, "num_images_per_prompt": images}
    named |= asking.sampling(sampler, spacing)
    folder = PictureFolder(out, prompt=prompt, output_format=output_format)
    params = run_params(prompt, catalog, model, seed=seed, named=named | {"output_format": folder.output_format})
    weights = weights_finder(settings)(model)
    folder.prepare()
    written: list[dict[str, Any]] = []

    def keep(index: int, pixels: Pixels) -> None:
        from safelight.pictures import PictureMetadata, encode_picture

        one = params.seed + index
        metadata = PictureMetadata(params=params, seed=one, model=model, revision=None)
        picture = encode_picture(pixels, params.output_format, metadata)
        path = folder.write(picture, seed=one, output_format=params.output_format)
        written.append({"path": str(path), "seed": one})

    run_time_ms = asyncio.run(_draw(settings, params, weights, device=device or _first_device(settings), keep=keep))
    if as_json:
        say_json({"run_time_ms": run_time_ms, "images": written})
        return
    for each in written:
        say(each["path"])
    explain(f"{len(written)} in {run_time_ms / 1000:.1f} s")


def run_params(prompt: str, catalog: Catalog, model: str, *, seed: int | None, named: dict[str, Any]) -> RunParams:
    """The model's defaults with what was named over them. Raises InvalidFields."""
    entry = catalog.get(model)
    defaults = entry.defaults if entry else Defaults()
    chosen = replace(defaults, **{key: value for key, value in named.items() if value is not None})
    if named.get("spacing") is None and chosen.spacing not in chosen.sampler.spacings:
        chosen = replace(chosen, spacing=Spacing.AUTOMATIC)
    fields = {key: getattr(chosen, key) for key in Defaults.__dataclass_fields__}
    first = secrets.randbelow(2**32) if seed is None or seed < 0 else seed
    params = RunParams(prompt=prompt, seed=first, **fields)
    if wrong := Limits().check(params):
        raise InvalidFields(wrong)
    return params


async def _draw(
    settings: Settings, params: RunParams, weights: Path, *, device: str, keep: Callable[[int, Pixels], None]
) -> float:
    """Milliseconds of work. Raises RunFailed, ModelError."""
    from safelight.app import engine_for
    from safelight.engine.events import AssignmentDone, AssignmentFailed, EncodedPrompt, ImageReady, StepDone
    from safelight.engine.tasks import Assignment, ModelSpec

    explain("loading the model")
    engine = engine_for(settings, device)
    await engine.start()
    try:
        await engine.load(ModelSpec("model", weights))
        indices = tuple(range(params.num_images_per_prompt))
        with StepBar() as bar:
            async for event in engine.generate(Assignment("generate", "model", params, indices)):
                if isinstance(event, StepDone):
                    bar.show(event.steps_done, event.steps_total, event.eta_seconds)
                elif isinstance(event, EncodedPrompt):
                    bar.note(*event.warnings)
                elif isinstance(event, ImageReady):
                    keep(event.index, event.pixels)
                elif isinstance(event, AssignmentFailed):
                    raise RunFailed(event.error.message, code=event.error.code)
                elif isinstance(event, AssignmentDone):
                    return event.run_time_ms
    finally:
        await engine.close()
    raise RunFailed("the drawing was stopped")


def _first_device(settings: Settings) -> str:
    """What the settings name first, else the first GPU, else the CPU."""
    named = settings.worker.devices or tuple(device for device, _ in look_at_torch().gpus)
    return named[0] if named else "cpu"

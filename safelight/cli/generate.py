"""`generate`: draw in this process, without a server and without a data folder."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.catalog import check_model
from safelight.catalog_file import load_catalog, weights_finder
from safelight.cli import asking
from safelight.cli.loras import own_loras
from safelight.cli.machine import look_at_torch
from safelight.cli.options import ConfigOption, JsonOption, settings_of
from safelight.cli.output import explain, say, say_json
from safelight.cli.pictures_out import PictureFolder
from safelight.cli.progress import StepBar
from safelight.config import Settings
from safelight.deployments import Defaults, Deployment, Serving
from safelight.errors import FieldError, InvalidFields, RunFailed
from safelight.inputs import InputShape, look_at, start_mask, start_pixels
from safelight.runs import RunParams

if TYPE_CHECKING:
    from safelight.engine.tasks import Assignment
    from safelight.pictures import Pixels


ModelOption = Annotated[
    str,
    typer.Option(
        help="Identifier from `safelight models`, a repository on this machine, a diffusers folder or a"
        " checkpoint file."
    ),
]
LoraOption = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE=SCALE", help="A LoRA's file; may be repeated.")
]


def generate(
    prompt: asking.PromptArgument,
    model: ModelOption = "pinhole",
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
    loras: LoraOption = None,
    init_image: Annotated[str | None, typer.Option(metavar="FILE", help="A picture to begin from.")] = None,
    mask: asking.MaskOption = None,
    strength: asking.StrengthOption = None,
    device: Annotated[str | None, typer.Option(help="Unset: of worker.devices, or the first GPU, or the CPU.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw PROMPT in this process and write the pictures; PNG files have their parameters inside."""
    settings = settings_of(config, None)
    folder = PictureFolder(out, prompt=prompt, output_format=output_format)
    named = asking.sampling(sampler, spacing) | {
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "num_images_per_prompt": images,
        "seed": None if seed is None or seed < 0 else seed,
        "output_format": folder.output_format,
        "init_image": asking.read_picture("init_image", init_image),
        "mask": asking.read_picture("mask", mask),
        "strength": strength,
    }
    drawing = _drawing(settings, model, prompt, loras or [], named)
    params = drawing.params
    folder.prepare()
    written: list[dict[str, Any]] = []

    def keep(index: int, pixels: Pixels) -> None:
        from safelight.pictures import PictureMetadata, encode_picture

        one = params.seed + index
        metadata = PictureMetadata(params=params, seed=one, model=model, revision=None)
        picture = encode_picture(pixels, params.output_format, metadata)
        path = folder.write(picture, seed=one, output_format=params.output_format)
        written.append({"path": str(path), "seed": one})

    run_time_ms = asyncio.run(_draw(settings, drawing, device=device or _first_device(settings), keep=keep))
    if as_json:
        say_json({"run_time_ms": run_time_ms, "images": written})
        return
    for each in written:
        say(each["path"])
    explain(f"{len(written)} in {run_time_ms / 1000:.1f} s")


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What to draw, with which weights; pictures and LoRAs are files."""

    params: RunParams
    weights: Path
    lora_files: tuple[tuple[str, str], ...] = ()
    init_image: bytes | None = None
    mask: bytes | None = None


def _drawing(settings: Settings, model: str, prompt: str, loras: list[str], named: dict[str, Any]) -> Drawing:
    """The model's defaults with what was named over them. Raises InvalidFields, ModelError."""
    from safelight.api.params import FRESH_SEEDS, NewParams, complete, find_wrong

    catalog = load_catalog(settings.catalog)
    if model not in settings.models:
        check_model(model, catalog=catalog, hf_home=settings.hf_home)
    weights = weights_finder(settings)(model)
    lora_files, uses = own_loras(loras, weights)
    entry = catalog.get(model)
    defaults, serving = entry.defaults if entry else Defaults(), Serving(lora_files=lora_files)
    deployment = Deployment(name="generate", version=0, model=model, defaults=defaults, serving=serving)
    asked = NewParams(prompt=prompt, loras=uses, **named)
    pictures = {"init_image": named["init_image"], "mask": named["mask"]}
    params = complete(asked, deployment, fresh_seed=secrets.randbelow(FRESH_SEEDS), picture=_look_at(pictures))
    if wrong := find_wrong(asked, params, deployment):
        raise InvalidFields(wrong)
    return Drawing(params, weights, lora_files, **pictures)


def _look_at(pictures: Mapping[str, bytes | None]) -> InputShape | None:
    """What is begun from. Raises InvalidFields, also for a mask of another size."""
    shapes: dict[str, InputShape] = {}
    for field, data in pictures.items():
        try:
            if data is not None:
                shapes[field] = look_at(data)
        except ValueError as error:
            raise InvalidFields([FieldError(field, str(error))]) from error
    picture, mask = shapes.get("init_image"), shapes.get("mask")
    if picture and mask and (mask.height, mask.width) != (picture.height, picture.width):
        wanted = f"the init_image {picture.width} x {picture.height}; give it the same size"
        raise InvalidFields([FieldError("mask", f"is {mask.width} x {mask.height} pixels and {wanted}")])
    return picture


async def _draw(settings: Settings, drawing: Drawing, *, device: str, keep: Callable[[int, Pixels], None]) -> float:
    """Milliseconds of work. Raises RunFailed, ModelError."""
    from safelight.app import engine_for
    from safelight.engine.events import AssignmentDone, AssignmentFailed, EncodedPrompt, ImageReady, StepDone
    from safelight.engine.tasks import ModelSpec

    explain("loading the model")
    engine = engine_for(settings, device)
    await engine.start()
    try:
        loras = {name: Path(file) for name, file in drawing.lora_files}
        await engine.load(ModelSpec("model", drawing.weights, loras=loras))
        with StepBar() as bar:
            async for event in engine.generate(_assignment(drawing)):
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


def _assignment(drawing: Drawing) -> Assignment:
    from safelight.engine.beginnings import StartPicture
    from safelight.engine.tasks import Assignment

    params, start = drawing.params, None
    if drawing.init_image is not None:
        mask = None if drawing.mask is None else start_mask(drawing.mask, params.height, params.width)
        start = StartPicture(start_pixels(drawing.init_image, params.height, params.width), mask)
    return Assignment("generate", "model", params, tuple(range(params.num_images_per_prompt)), picture=start)


def _first_device(settings: Settings) -> str:
    """What the settings name first, else the first GPU, else the CPU."""
    named = settings.worker.devices or tuple(device for device, _ in look_at_torch().gpus)
    return named[0] if named else "cpu"

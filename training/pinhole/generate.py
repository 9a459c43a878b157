"""Pictures from a pipeline, in batches, each with its own seed: what evaluation and contact sheets share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Request:
    """How to draw, apart from the prompt and the seed."""

    width: int = 512
    height: int = 512
    num_steps: int = 20
    guidance: float = 3.0
    negative_prompt: str = ""


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], request: Request
) -> list[np.ndarray]:
    """uint8 [H, W, 3] for every prompt, with the seed at the same place."""
    pictures: list[np.ndarray] = []
    for first in range(0, len(prompts), BATCH_SIZE):
        batch = list(prompts[first : first + BATCH_SIZE])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + BATCH_SIZE]]
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            drawn = pipeline(
                batch,
                negative_prompt=[request.negative_prompt] * len(batch),
                width=request.width,
                height=request.height,
                num_inference_steps=request.num_steps,
                guidance_scale=request.guidance,
                generator=generators,
                output_type="np",
            )
        pictures.extend((drawn.images * 255).round().astype(np.uint8))
    return pictures


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, *, margin: int = 8) -> Image.Image:
    """Pictures of one size in rows, on white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + margin) + margin, rows * (height + margin) + margin), "white")
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        sheet.paste(Image.fromarray(picture), (margin + column * (width + margin), margin + row * (height + margin)))
    return sheet

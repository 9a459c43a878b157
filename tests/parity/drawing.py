"""Draw the same picture twice: with the engine, and with diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from pytest import MonkeyPatch

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, ImageReady, Pixels
from safelight.engine.models.base import ImageModel
from safelight.engine.samplers import step_noise
from safelight.engine.tasks import Assignment
from safelight.runs import RunParams

from .oracle import feed_noise, make_scheduler


def draw_with_engine(model: ImageModel, asked: Sequence[RunParams], **settings: int) -> list[list[Pixels]]:
    """All of `asked` at once, in one engine; the pictures of each, in order."""
    engine = Engine(**settings)
    engine.load("model", model)
    drawn: dict[str, dict[int, Pixels]] = {}
    for number, params in enumerate(asked):
        drawn[str(number)] = {}
        indices = tuple(range(params.num_images_per_prompt))
        engine.submit(Assignment(str(number), "model", params, indices))
    while engine.has_work:
        for run_id, event in engine.step():
            assert not isinstance(event, AssignmentFailed), event
            if isinstance(event, ImageReady):
                drawn[run_id][event.index] = event.pixels
    return [[pictures[index] for index in sorted(pictures)] for pictures in drawn.values()]


def draw_with_diffusers(pipeline: DiffusionPipeline, params: RunParams, patch: MonkeyPatch) -> list[Pixels]:
    """From text alone."""
    return draw_with_pipeline(
        pipeline,
        params,
        patch,
        negative_prompt=params.negative_prompt or None,
        height=params.height,
        width=params.width,
    )


def draw_with_pipeline(
    pipeline: DiffusionPipeline, params: RunParams, patch: MonkeyPatch, **given: object
) -> list[Pixels]:
    """As its documentation says: a generator for each image, the sampler by `from_config`. `given` goes
    to the pipeline too."""
    own = pipeline.scheduler
    pipeline.scheduler = make_scheduler(params.sampler, own.config, params.spacing)
    feed_step_noise(patch, params)
    pictures = pipeline(
        params.prompt,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        num_images_per_prompt=params.num_images_per_prompt,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in params.seeds],
        output_type="np",
        **given,
    ).images
    pipeline.scheduler = own
    return list((pictures * 255).round().astype(np.uint8))


def largest_difference(ours: Sequence[Pixels], theirs: Sequence[Pixels]) -> int:
    """In steps of 1/255."""
    assert len(ours) == len(theirs) > 0
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(ours, theirs, strict=True))


def alone(params: RunParams, index: int) -> RunParams:
    """What draws image `index` of a run by itself."""
    return replace(params, seed=params.seed + index, num_images_per_prompt=1)


def feed_step_noise(patch: MonkeyPatch, params: RunParams) -> None:
    """Let diffusers' samplers use the engine's own noise."""
    feed_noise(patch, _step_noises(params))


def _step_noises(params: RunParams) -> Iterator[torch.Tensor]:
    """The engine's own noise, step by step, for diffusers to use."""
    shape = (4, params.height // 8, params.width // 8)
    for step in range(params.num_inference_steps):
        yield torch.from_numpy(np.stack([step_noise(seed, step, shape) for seed in params.seeds]))

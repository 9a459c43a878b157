"""The same seed gives the same picture as diffusers' StableDiffusionPipeline, and neighbours change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from safelight.engine.models.loading import load_model
from safelight.runs import RunParams, SamplerName, Spacing

from .conftest import Pair
from .drawing import alone, draw_with_diffusers, draw_with_engine, largest_difference

PLAIN = RunParams(
    prompt="a red cat riding a horse on mars", height=40, width=72, num_inference_steps=5, seed=11, guidance_scale=7.5
)
LONG = " ".join(["stars and snow above two blue boats"] * 40)

WAYS = {
    "guided": PLAIN,
    "negative": replace(PLAIN, negative_prompt="snow, a house", num_images_per_prompt=3, height=32, width=32),
    "unguided": replace(PLAIN, guidance_scale=1.0, negative_prompt="is not read", height=88, width=24),
}


EVERY_SAMPLER = [("guided", sampler) for sampler in SamplerName]
EVERY_WAY = [(way, sampler) for way in WAYS for sampler in (SamplerName.EULER_ANCESTRAL, SamplerName.LMS)]


@pytest.mark.parametrize(("way", "sampler"), sorted({*EVERY_SAMPLER, *EVERY_WAY}))
def test_a_picture_is_the_one_diffusers_draws(
    pair: Pair, sampler: SamplerName, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(WAYS[way], sampler=sampler)
    theirs = draw_with_diffusers(pair.theirs, params, monkeypatch)
    [ours] = draw_with_engine(pair.ours, [params])
    assert np.std(theirs[0]) > 20, "the fixture draws something"
    assert largest_difference(ours, theirs) <= 1


@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("sampler", list(SamplerName))
def test_any_number_of_steps_matches(
    tiny_v2: Pair, sampler: SamplerName, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(PLAIN, sampler=sampler, num_inference_steps=num_steps, height=32, width=32)
    theirs = draw_with_diffusers(tiny_v2.theirs, params, monkeypatch)
    [ours] = draw_with_engine(tiny_v2.ours, [params])
    assert largest_difference(ours, theirs) <= 1


@pytest.mark.parametrize("prompt", ["", "Ünïcode 你好 🚀 MIXED case!!", LONG])
def test_any_text_is_read_as_diffusers_reads_it(pair: Pair, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = replace(PLAIN, prompt=prompt, negative_prompt=LONG, height=32, width=32, num_inference_steps=3)
    theirs = draw_with_diffusers(pair.theirs, params, monkeypatch)
    [ours] = draw_with_engine(pair.ours, [params])
    assert largest_difference(ours, theirs) <= 1


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        (SamplerName.EULER, Spacing.KARRAS),
        (SamplerName.DPMPP_2M, Spacing.KARRAS),
        (SamplerName.DPMPP_2M_SDE, Spacing.EXPONENTIAL),
        (SamplerName.UNIPC, Spacing.TRAILING),
        (SamplerName.HEUN, Spacing.LEADING),
        (SamplerName.DDIM, Spacing.TRAILING),
    ],
)
def test_any_spacing_matches(
    tiny_v2: Pair, sampler: SamplerName, spacing: Spacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(PLAIN, sampler=sampler, spacing=spacing, height=32, width=32)
    theirs = draw_with_diffusers(tiny_v2.theirs, params, monkeypatch)
    [ours] = draw_with_engine(tiny_v2.ours, [params])
    assert largest_difference(ours, theirs) <= 1


def test_a_picture_beside_nine_others_is_the_picture_alone(pair: Pair) -> None:
    asked = [
        replace(
            PLAIN,
            prompt=f"{number} blue boats",
            sampler=sampler,
            seed=100 + number,
            num_inference_steps=3 + number // 2,
            guidance_scale=[7.5, 1.0, 3.0][number % 3],
            negative_prompt="snow" if number % 2 else "",
        )
        for number, sampler in enumerate(SamplerName)
    ]
    together = draw_with_engine(pair.ours, asked)
    for params, beside in zip(asked, together, strict=True):
        [by_itself] = draw_with_engine(pair.ours, [params])
        assert largest_difference(beside, by_itself) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deterministic_picture_is_the_same_to_the_last_bit_whoever_is_beside_it(
    tiny_v2: Pair, dtype: torch.dtype
) -> None:
    model = load_model(tiny_v2.folder, dtype=dtype)
    exact = replace(PLAIN, num_images_per_prompt=2, sampler=SamplerName.DPMPP_2M_SDE, deterministic=True)
    others = [replace(PLAIN, prompt=f"{number} boats", seed=number) for number in range(5)]
    together, *_ = draw_with_engine(model, [exact, *others])
    [by_itself] = draw_with_engine(model, [exact])
    assert largest_difference(together, by_itself) == 0
    for index, picture in enumerate(together):
        [[single]] = draw_with_engine(model, [alone(exact, index)])
        assert largest_difference([picture], [single]) == 0


def test_each_image_of_a_run_can_be_drawn_alone(tiny_v1: Pair) -> None:
    params = replace(WAYS["negative"], sampler=SamplerName.EULER_ANCESTRAL)
    [run] = draw_with_engine(tiny_v1.ours, [params])
    for index, picture in enumerate(run):
        [[by_itself]] = draw_with_engine(tiny_v1.ours, [alone(params, index)])
        assert largest_difference([picture], [by_itself]) <= 1
    assert largest_difference(run[:1], run[1:2]) > 30


def test_a_batch_that_does_not_fit_at_once_draws_the_same(tiny_v1: Pair) -> None:
    params = replace(PLAIN, num_images_per_prompt=3, height=32, width=32)
    [wide] = draw_with_engine(tiny_v1.ours, [params])
    [narrow] = draw_with_engine(tiny_v1.ours, [params], max_batch_rows=2)
    assert largest_difference(wide, narrow) <= 1


def test_bfloat16_draws_nearly_the_same(tiny_v2: Pair) -> None:
    model = load_model(tiny_v2.folder, dtype=torch.bfloat16)
    params = replace(PLAIN, height=32, width=32, guidance_scale=2.0)
    [[exact]], [[rounded]] = draw_with_engine(tiny_v2.ours, [params]), draw_with_engine(model, [params])
    assert np.abs(exact.astype(int) - rounded.astype(int)).mean() < 6


def test_in_float16_the_autoencoder_stays_in_float32_where_it_would_overflow(tiny_xl: Pair) -> None:
    model = load_model(tiny_xl.folder, dtype=torch.float16)
    *_, unet, vae = model.networks
    assert (next(unet.parameters()).dtype, next(vae.parameters()).dtype) == (torch.float16, torch.float32)
    params = replace(PLAIN, height=32, width=32, num_inference_steps=2, guidance_scale=2.0)
    [[exact]], [[rounded]] = draw_with_engine(tiny_xl.ours, [params]), draw_with_engine(model, [params])
    assert np.abs(exact.astype(int) - rounded.astype(int)).mean() < 6

"""The weights in the package: plain diffusers loads them, anything can be asked of them, and they draw
what is asked."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

WEIGHTS = Path(__file__).parents[2] / "safelight" / "pinhole"
MAX_BYTES = 45_000_000


@pytest.fixture(scope="module")
def pipeline() -> Iterator[StableDiffusionPipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    loaded = StableDiffusionPipeline.from_pretrained(str(WEIGHTS), dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    yield loaded
    torch.set_num_threads(threads)


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], *, side: int = 256, steps: int = 15) -> np.ndarray:
    generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    drawn = pipeline(
        prompts,
        width=side,
        height=side,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=generators,
        output_type="np",
    )
    return drawn.images


def test_the_folder_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= MAX_BYTES


def test_the_folder_names_no_machine() -> None:
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8")


def test_the_latent_is_as_the_card_says() -> None:
    config = json.loads((WEIGHTS / "vae" / "config.json").read_text(encoding="utf-8"))
    assert config["latent_channels"] == 20
    assert 2 ** (len(config["block_out_channels"]) - 1) == 32


@pytest.mark.parametrize("prompt", ["", "zxqv wortlos ąęö", "horse " * 1000, "🚀🐴 🪐", "\x00\t\n", "a red circle"])
def test_any_prompt_draws_a_finite_picture(pipeline: StableDiffusionPipeline, prompt: str) -> None:
    picture = draw(pipeline, [prompt], steps=2)
    assert picture.shape == (1, 256, 256, 3)
    assert np.isfinite(picture).all()


def test_the_same_seed_draws_the_same_picture(pipeline: StableDiffusionPipeline) -> None:
    assert np.array_equal(draw(pipeline, ["a cat"], steps=4), draw(pipeline, ["a cat"], steps=4))

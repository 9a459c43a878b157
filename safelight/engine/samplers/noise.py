"""The noise of an image: a function of its seed and of the step alone, so that it can be drawn again by itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray


def initial_noise(seed: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """[C, h, w] in float32, as diffusers draws it from a CPU generator of this seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


def picture_noise(seed: int, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of [C, h, w] in float32, in the order in which diffusers draws them for an image that begins from a picture:
    what picks the latent among those the encoder thinks of, and what lies over it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    first, second = (torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0] for _ in range(2))
    return first, second


def step_noise(seed: int, step: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """[C, h, w], a function of its arguments alone: Philox keyed by seed and step, then Box and Muller's transform."""
    size = math.prod(shape)
    half = (size + 1) // 2
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(2 * half)
    # 53 bits, shifted off zero so that the logarithm is finite.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    # In single precision from here on: sines in double take three times as long as all the rest.
    radius = np.sqrt(-2.0 * np.log(uniform[:half])).astype(np.float32)
    angle = (2.0 * np.pi * uniform[half:]).astype(np.float32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size].reshape(shape)

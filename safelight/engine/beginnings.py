"""Where an image begins: at noise alone, or at a picture under as much noise as the steps that are left take away.

With a mask, what is black in it stays the picture's: after each step it is put back under the noise of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from safelight.engine.copies import upload
from safelight.engine.samplers import SIGMA, initial_noise, picture_noise

if TYPE_CHECKING:
    from safelight.engine.events import Pixels
    from safelight.engine.models.base import ImageModel, PictureLatent
    from safelight.engine.tasks import ImageTask

Mask = NDArray[np.bool_]
"""[H, W]; true where is painted anew."""


@dataclass(frozen=True, slots=True, eq=False)
class StartPicture:
    """What a run begins from, in the size of its images."""

    pixels: Pixels
    mask: Mask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """An encoded StartPicture: its latent, and the mask [1, h, w] of ones where is painted anew."""

    latent: PictureLatent
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The part of one image that stays: `clean` and `noise` are [C, h, w], `mask` is [1, h, w]."""

    clean: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor

    def put_back(self, latent: torch.Tensor, sigma: float) -> torch.Tensor:
        """`latent` where the mask is one, else what is known at this noise (as in diffusers' inpainting of models that
        know no mask; Lugmayr et al. 2022, arXiv 2201.09865, equation 8)."""
        return torch.lerp(torch.add(self.clean, self.noise, alpha=sigma), latent, self.mask)


def encode_start(model: ImageModel, picture: StartPicture) -> Start:
    """Once for a run: its images differ in their noise only."""
    mask = None if picture.mask is None else model.encode_mask(picture.mask)
    return Start(model.encode_picture(picture.pixels), mask)


def begin(task: ImageTask) -> None:
    """Give the image its latent, unless a checkpoint did, and what it needs to know of its picture."""
    shape, device = task.key.latent_shape, task.run.model.device
    start = task.run.start
    if start is None:
        task.latent = upload(initial_noise(task.seed, shape) * task.table.initial_scale, device)
        return
    drawn, noise = (upload(each, device) for each in picture_noise(task.seed, shape))
    clean = torch.addcmul(start.latent.mean, start.latent.std, drawn)
    if task.latent is None:
        is_all_noise = start.mask is not None and task.run.assignment.params.num_skipped_steps == 0
        sigma = float(task.table.columns[0, SIGMA])
        task.latent = noise * task.table.initial_scale if is_all_noise else torch.add(clean, noise, alpha=sigma)
    if start.mask is not None:
        task.known = Known(clean, noise, start.mask)

"""One batch as stacked tensors: rows in, rows out. The only place where latents of different images meet."""

from __future__ import annotations

import numpy as np
import torch

from safelight.engine.copies import upload
from safelight.engine.models.base import Conditioning, ImageModel
from safelight.engine.samplers import (
    SIGMA,
    TIMESTEP,
    D,
    E,
    F,
    Floats,
    sample,
    step_noise,
    to_remember,
)
from safelight.engine.tasks import Batch, ImageTask


class Rows:
    """What stays the same as long as the same images travel together: conditionings, which row is whose, guidance. And
    what their last step found, `denoised` [B, C, h, w].

    Rows 0 to B-1 are the images under their prompts; the negative rows of the guided ones follow. An unguided image is
    its own negative at guidance 1, so one expression serves all.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._model = batch.tasks[0].run.model
        device = self._model.device
        tasks = batch.tasks
        guided = [place for place, task in enumerate(tasks) if task.is_guided]
        negatives = list(range(len(tasks)))
        for row, place in enumerate(guided):
            negatives[place] = len(tasks) + row
        hidden = [_known(task.run.prompt).hidden for task in tasks]
        hidden += [_known(tasks[place].run.negative).hidden for place in guided]
        scales = [task.run.assignment.params.guidance_scale if task.is_guided else 1.0 for task in tasks]
        self._conditioning = torch.stack(hidden)
        self._has_guidance = bool(guided)
        self._image_of_row = upload(torch.tensor([*range(len(tasks)), *guided]), device)
        self._negative_of_image = upload(torch.tensor(negatives), device)
        self._guidance = upload(torch.tensor(scales, dtype=torch.float32), device)[:, None, None, None]

    def advance(self) -> None:
        """One step for every image: stack, predict, guide, sample. Tasks change only once all of it has succeeded."""
        tasks = self.batch.tasks
        scalars = np.stack([task.table.columns[task.cursor] for task in tasks])
        columns = upload(torch.from_numpy(scalars.astype(np.float32)), self._model.device)
        x = torch.stack([_latent(task) for task in tasks])
        self.denoised = denoised = self._guide(self._predict(x, columns))
        moved = sample(x, denoised, columns, remembered=_remembered(tasks), noise=_noise(tasks, scalars, self._model))
        # Most of those who look back remember the denoised latent as it is.
        kept = to_remember(x, denoised, columns) if scalars[:, E].any() else denoised
        latents = [_with_known(task, latent) for task, latent in zip(tasks, moved.unbind(), strict=True)]
        for task, latent, memory, row in zip(tasks, latents, kept.unbind(), scalars, strict=True):
            task.latent = latent
            if row[F] and task.table.depth:
                task.remembered = (memory, *task.remembered)[: task.table.depth]
            task.cursor += 1

    def _predict(self, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        if self._has_guidance:
            # Not [...], which takes twice as long for the same.
            x = x.index_select(0, self._image_of_row)
            columns = columns.index_select(0, self._image_of_row)
        return self._model.predict(x, columns[:, SIGMA], columns[:, TIMESTEP], self._conditioning)

    def _guide(self, denoised: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, equation 6), on denoised latents."""
        if not self._has_guidance:
            return denoised
        negative = denoised.index_select(0, self._negative_of_image)
        return torch.addcmul(negative, self._guidance, denoised[: len(self.batch.tasks)] - negative)


def _with_known(task: ImageTask, latent: torch.Tensor) -> torch.Tensor:
    """What a step has made of it, and where a mask says so what is known, under the noise of then."""
    return latent if task.known is None else task.known.put_back(latent, task.next_sigma)


def _remembered(tasks: tuple[ImageTask, ...]) -> list[torch.Tensor]:
    """As far back as anyone can look. Those who do not have weight zero there: any finite stand-in will do."""
    depth = max(len(task.remembered) for task in tasks)
    return [
        torch.stack([task.remembered[ago] if ago < len(task.remembered) else _latent(task) for task in tasks])
        for ago in range(depth)
    ]


def _noise(tasks: tuple[ImageTask, ...], scalars: Floats, model: ImageModel) -> torch.Tensor | None:
    weights = scalars[:, D]
    if not weights.any():
        return None
    shape = tasks[0].key.latent_shape
    noise = np.zeros((len(tasks), *shape), dtype=np.float32)
    for place in weights.nonzero()[0]:
        noise[place] = step_noise(tasks[place].seed, tasks[place].cursor, shape)
    return upload(torch.from_numpy(noise), model.device)


def _latent(task: ImageTask) -> torch.Tensor:
    assert task.latent is not None
    return task.latent


def _known(conditioning: Conditioning | None) -> Conditioning:
    assert conditioning is not None
    return conditioning

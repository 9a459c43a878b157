"""Small pictures of images under way, for whoever watches: a linear map from a latent's channels to colours, fitted to
the model's own decoder. Thread: engine."""

from __future__ import annotations

import logging

import torch

from safelight.engine.copies import HostCopy
from safelight.engine.events import PreviewReady
from safelight.engine.models.base import ImageModel
from safelight.engine.tasks import Batch, LiveRun

log = logging.getLogger(__name__)

WATCH_SECONDS = 5.0
"""How long a run counts as watched after somebody was last heard of."""

INTERVAL_SECONDS = 1.0

PIXELS_PER_PLACE = 8
"""Of the picture, for each pixel of its preview."""

_SIDE = 16
_CELL = 2
_RIDGE = 1e-3


class Previews:
    """Which runs are watched, and their previews on the way to the host."""

    def __init__(self) -> None:
        self._previewers: dict[str, Previewer] = {}
        self._pending: list[tuple[LiveRun, int, HostCopy]] = []

    def watch(self, run: LiveRun, now: float) -> None:
        """Somebody watches the run; its first preview is due at once."""
        if run.watched_until <= now:
            run.previewed_at = now - INTERVAL_SECONDS
        run.watched_until = now + WATCH_SECONDS

    def begin(self, batch: Batch, denoised: torch.Tensor, now: float) -> None:
        """Make the previews that are due out of what a step has found [B, C, h, w]: of each run its first image."""
        begun: set[LiveRun] = set()
        for place, task in enumerate(batch.tasks):
            run = task.run
            is_due = run.watched_until > now and now - run.previewed_at >= INTERVAL_SECONDS
            if run not in begun and is_due:
                begun.add(run)
                run.previewed_at = now
                self._begin(run, task.index, denoised[place])

    def take_ready(self) -> list[tuple[LiveRun, PreviewReady]]:
        """Those that have arrived on the host."""
        ready = [each for each in self._pending if each[2].is_ready]
        self._pending = [each for each in self._pending if each not in ready]
        return [(run, PreviewReady(index, copy.tensors()[0].numpy())) for run, index, copy in ready]

    def forget(self, model_key: str) -> None:
        """The model is gone."""
        self._previewers.pop(model_key, None)
        self._pending = [each for each in self._pending if each[0].assignment.model_key != model_key]

    def _begin(self, run: LiveRun, index: int, latent: torch.Tensor) -> None:
        key = run.assignment.model_key
        try:
            if key not in self._previewers:
                self._previewers[key] = Previewer(run.model)
            self._pending.append((run, index, HostCopy([self._previewers[key].pixels(latent)])))
        except Exception as error:
            # Nobody's picture hangs on it.
            run.watched_until = 0.0
            log.warning("no preview could be made", extra={"run_id": run.run_id, "reason": repr(error)})


class Previewer:
    """Makes the previews of one model. The map is fitted when the first is wanted: one small decode."""

    def __init__(self, model: ImageModel) -> None:
        factor = 1024 // model.latent_shape(1024, 1024)[1]
        self._num_parts = max(1, factor // PIXELS_PER_PLACE)
        self._map = _fit(model, factor, self._num_parts)

    def pixels(self, denoised: torch.Tensor) -> torch.Tensor:
        """[h k, w k, 3] in bytes, of a denoised latent [C, h, w]: each place of it becomes k x k pixels."""
        k, (_, h, w) = self._num_parts, denoised.shape
        colours = _places(denoised.float()) @ self._map
        pixels = colours.reshape(h, w, k, k, 3).transpose(1, 2).reshape(h * k, w * k, 3)
        return pixels.clamp(0, 255).round().to(torch.uint8).contiguous()


def _fit(model: ImageModel, factor: int, num_parts: int) -> torch.Tensor:
    """[C + 1, 3 k k], by least squares over a decoded latent of random patches.

    Patches and not single places, since a decoder looks at the places around, which in pictures are alike.
    """
    side, k = _SIDE, num_parts
    num_channels = model.latent_shape(1024, 1024)[0]
    patches = torch.randn(num_channels, side // _CELL, side // _CELL, generator=torch.Generator().manual_seed(0))
    latent = patches.repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)
    picture = torch.from_numpy(model.decode(latent.to(model.device), side * factor, side * factor)).float()
    block = factor // k
    parts = picture.reshape(side, k, block, side, k, block, 3).mean((2, 5))
    wanted = parts.permute(0, 2, 1, 3, 4).reshape(side * side, 3 * k * k)
    known = _places(latent)
    # A channel that the decoder does not read, or two that are alike, must not blow the map up.
    gram = known.T @ known + _RIDGE * len(known) * torch.eye(known.shape[1])
    solved: torch.Tensor = torch.linalg.solve(gram, known.T @ wanted)
    return solved.to(model.device)


def _places(latent: torch.Tensor) -> torch.Tensor:
    """[h w, C + 1]: the channels of each place, and a one."""
    channels = latent.flatten(1).T
    return torch.cat([channels, channels.new_ones(len(channels), 1)], dim=1)

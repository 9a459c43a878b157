"""A run's images between two steps, on the host: taken without waiting, packed into safetensors, taken up again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from safelight.engine.copies import HostCopy
from safelight.engine.samplers import StepTable
from safelight.engine.tasks import ImageTask

log = logging.getLogger(__name__)

Latent = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageState:
    """One image after `cursor` steps: all that its way from here on hangs on, besides the run's own record."""

    index: int
    cursor: int
    latent: Latent
    remembered: tuple[Latent, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The images of a run that have begun. `table` tells the step table they were on; `spent` the seconds of engine
    passes and of the device that the run had cost."""

    table: bytes
    images: tuple[ImageState, ...]
    spent: tuple[float, float] = (0.0, 0.0)

    def take_up(self, task: ImageTask) -> None:
        """Put `task` where its image was, if that is the same way; else it begins at the beginning."""
        state = next((image for image in self.images if image.index == task.index), None)
        if state is None:
            return
        shapes = {latent.shape for latent in (state.latent, *state.remembered)}
        if self.table != digest_of(task.table) or shapes != {task.key.latent_shape} or state.cursor > len(task.table):
            log.warning("a checkpoint of another version is not used", extra={"run_id": task.run.run_id})
            return
        task.run.run_time, task.run.device_time = self.spent
        device = task.run.model.device
        task.cursor = state.cursor
        task.latent = torch.tensor(state.latent, device=device)
        task.remembered = tuple(torch.tensor(latent, device=device) for latent in state.remembered)


class Snapshot:
    """The latents of some images on their way to the host. Thread: engine.

    A step never writes into a latent, it makes a new one: on a CPU nothing is copied at all.
    """

    def __init__(self, tasks: Sequence[ImageTask]) -> None:
        begun = [(task, [task.latent, *task.remembered]) for task in tasks if task.latent is not None]
        self._table = digest_of(tasks[0].table)
        self._spent = tasks[0].run.run_time, tasks[0].run.device_time
        self._places = [(task.index, task.cursor, len(latents)) for task, latents in begun]
        self._copy = HostCopy([latent for _, latents in begun for latent in latents])

    @property
    def is_ready(self) -> bool:
        return self._copy.is_ready

    def checkpoint(self) -> Checkpoint:
        """What was taken; waits where it is not ready yet."""
        arrays = (latent.numpy() for latent in self._copy.tensors())
        states = []
        for index, cursor, num_latents in self._places:
            latent, *remembered = islice(arrays, num_latents)
            states.append(ImageState(index, cursor, latent, tuple(remembered)))
        return Checkpoint(self._table, tuple(states), self._spent)


def pack(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as safetensors. Any thread."""
    places = [(image.index, image.cursor, len(image.remembered)) for image in checkpoint.images]
    arrays: dict[str, NDArray[np.generic]] = {
        "table": np.frombuffer(checkpoint.table, np.uint8),
        "images": np.array(places, np.int64).reshape(-1, 3),
        "spent": np.array(checkpoint.spent, np.float64),
    }
    for image in checkpoint.images:
        for ago, latent in enumerate((image.latent, *image.remembered)):
            arrays[f"{image.index}.{ago}"] = np.ascontiguousarray(latent)
    return bytes(safetensors.numpy.save(arrays))


def unpack(data: bytes) -> Checkpoint | None:
    """What `pack` wrote; None when this is something else."""
    try:
        arrays = safetensors.numpy.load(data)
        states = [
            ImageState(index, cursor, arrays[f"{index}.0"], tuple(arrays[f"{index}.{1 + ago}"] for ago in range(depth)))
            for index, cursor, depth in arrays["images"].tolist()
        ]
        run_time, device_time = arrays["spent"].tolist() if "spent" in arrays else (0.0, 0.0)
        return Checkpoint(arrays["table"].tobytes(), tuple(states), (run_time, device_time))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        log.warning("a checkpoint cannot be read", extra={"reason": repr(error)})
        return None


def digest_of(table: StepTable) -> bytes:
    """Tells one step table from another: a newer version may step otherwise."""
    return hashlib.sha256(table.columns.tobytes()).digest()

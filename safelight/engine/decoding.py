"""From a finished latent to a picture."""

from __future__ import annotations

import logging

import torch

from safelight.engine import faults
from safelight.engine.events import Pixels
from safelight.engine.tasks import ImageTask
from safelight.runs import RunError

log = logging.getLogger(__name__)


def decode(task: ImageTask) -> Pixels | RunError:
    """The picture of a finished latent, or why there is none. Thread: engine."""
    params = task.run.assignment.params
    assert task.latent is not None
    try:
        if not bool(torch.isfinite(task.latent).all()):
            return faults.NON_FINITE_LATENT
        return task.run.model.decode(task.latent, params.height, params.width)
    except Exception as error:
        log.exception("decoding failed", extra={"run_id": task.run.run_id})
        return faults.decode_failed(error)

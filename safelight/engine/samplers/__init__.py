"""Schedules and step rules as tables of coefficients. Pure maths; knows no model and no task. docs/samplers.md says
what each sampler is and how closely it follows its original."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from safelight.engine.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, lms, pndm, unipc
from safelight.engine.samplers.noise import initial_noise, picture_noise, step_noise
from safelight.engine.samplers.onestep import ddim, euler, euler_ancestral, heun, lcm
from safelight.engine.samplers.schedules import (
    TIMESTEP_SPACINGS,
    Floats,
    NoiseSchedule,
    alphas_from_betas,
    scaled_linear_schedule,
)
from safelight.engine.samplers.tables import (
    MAX_DEPTH,
    SIGMA,
    TIMESTEP,
    A,
    B,
    C,
    D,
    E,
    F,
    StepTable,
    sample,
    to_remember,
)
from safelight.runs import SamplerName, Spacing

__all__ = [
    "MAX_DEPTH",
    "SIGMA",
    "TIMESTEP",
    "TIMESTEP_SPACINGS",
    "A",
    "B",
    "C",
    "D",
    "E",
    "F",
    "Floats",
    "NoiseSchedule",
    "Spacing",
    "StepTable",
    "alphas_from_betas",
    "initial_noise",
    "picture_noise",
    "sample",
    "scaled_linear_schedule",
    "step_noise",
    "step_table",
    "to_remember",
]


class _Sampler(Protocol):
    def __call__(self, num_steps: int, schedule: NoiseSchedule, spacing: Spacing, first: int, /) -> StepTable: ...


_SAMPLERS: Mapping[SamplerName, _Sampler] = {
    SamplerName.EULER: euler,
    SamplerName.EULER_ANCESTRAL: euler_ancestral,
    SamplerName.DDIM: ddim,
    SamplerName.DPMPP_2M: dpmpp_2m,
    SamplerName.DPMPP_2M_SDE: dpmpp_2m_sde,
    SamplerName.UNIPC: unipc,
    SamplerName.HEUN: heun,
    SamplerName.LMS: lms,
    SamplerName.LCM: lcm,
    SamplerName.PNDM: pndm,
}

_LEADING_BY_DEFAULT = frozenset({SamplerName.DDIM, SamplerName.PNDM})


@functools.lru_cache(maxsize=256)
def step_table(
    sampler: SamplerName,
    num_steps: int,
    schedule: NoiseSchedule,
    spacing: Spacing = Spacing.AUTOMATIC,
    *,
    num_skipped: int = 0,
) -> StepTable:
    """The table of `sampler` over `num_steps` steps, without the first `num_skipped`: the next one has nothing to look
    back at then. Automatic spacing is the model's wish, else the sampler's default. Whoever
    asks for the same gets the same one, also once its model is gone."""
    if spacing is Spacing.AUTOMATIC:
        default = Spacing.LEADING if sampler in _LEADING_BY_DEFAULT else Spacing.LINSPACE
        spacing = schedule.spacing or default
    return _SAMPLERS[sampler](num_steps, schedule, spacing, num_skipped)

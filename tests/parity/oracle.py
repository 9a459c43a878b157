"""diffusers' schedulers as an oracle: built as its users build them, driven in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)
from pytest import MonkeyPatch

from safelight.engine.samplers import TIMESTEP_SPACINGS
from safelight.runs import SamplerName, Spacing

SCHEDULERS: Mapping[SamplerName, tuple[type[SchedulerMixin], Mapping[str, Any]]] = {
    SamplerName.EULER: (EulerDiscreteScheduler, {}),
    SamplerName.EULER_ANCESTRAL: (EulerAncestralDiscreteScheduler, {}),
    SamplerName.DDIM: (DDIMScheduler, {}),
    SamplerName.DPMPP_2M: (DPMSolverMultistepScheduler, {}),
    SamplerName.DPMPP_2M_SDE: (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    SamplerName.UNIPC: (UniPCMultistepScheduler, {}),
    SamplerName.HEUN: (HeunDiscreteScheduler, {}),
    SamplerName.LMS: (LMSDiscreteScheduler, {}),
    SamplerName.LCM: (LCMScheduler, {}),
    # Stable Diffusion's own config asks for PNDM without its Runge-Kutta steps.
    SamplerName.PNDM: (PNDMScheduler, {"skip_prk_steps": True}),
}

_DRAWING_NOISE = (scheduling_euler_ancestral_discrete, scheduling_dpmsolver_multistep, scheduling_lcm)

_FLAGS = {Spacing.KARRAS: "use_karras_sigmas", Spacing.EXPONENTIAL: "use_exponential_sigmas"}


def make_scheduler(sampler: SamplerName, config: Mapping[str, Any], spacing: Spacing) -> SchedulerMixin:
    """The scheduler of `sampler` over a pipeline's scheduler config."""
    kind, own = SCHEDULERS[sampler]
    asked = dict(own)
    if spacing in TIMESTEP_SPACINGS:
        asked["timestep_spacing"] = spacing.value
    elif spacing in _FLAGS:
        asked[_FLAGS[spacing]] = True
    elif spacing is Spacing.SGM_UNIFORM:
        # The nearest it has; here it decides the deviation of the first latent only.
        asked["timestep_spacing"] = "trailing"
    # As arguments: what a config names it may also mark as a default, to be dropped.
    return kind.from_config(config, **asked)


def lay_grid(scheduler: SchedulerMixin, sampler: SamplerName, num_steps: int, spacing: Spacing) -> None:
    """`set_timesteps`, and what diffusers does not offer put in by hand: uniform sigmas for all, karras and exponential
    ones, as Euler has them, for the ancestral sampler."""
    scheduler.set_timesteps(num_steps)
    if spacing is Spacing.SGM_UNIFORM:
        trained = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt().numpy()
        timesteps = np.linspace(999, 0, num_steps + 1)[:-1]
        sigmas = np.append(np.exp(np.interp(timesteps, np.arange(1000), np.log(trained))), 0.0)
        repeats = torch.tensor([1, *[2] * (num_steps - 1)])
        is_heun = sampler is SamplerName.HEUN
        scheduler.timesteps = torch.from_numpy(timesteps).float()
        scheduler.sigmas = torch.from_numpy(sigmas)
        if is_heun:
            scheduler.timesteps = scheduler.timesteps.repeat_interleave(repeats)
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-1].repeat_interleave(repeats), scheduler.sigmas[-1:]])
    elif sampler is SamplerName.EULER_ANCESTRAL and spacing in _FLAGS:
        euler = make_scheduler(SamplerName.EULER, scheduler.config, spacing)
        euler.set_timesteps(num_steps)
        scheduler.timesteps, scheduler.sigmas = euler.timesteps, euler.sigmas


def feed_noise(patch: MonkeyPatch, noises: Iterator[torch.Tensor]) -> None:
    """Let every scheduler take its noise from here."""
    for module in _DRAWING_NOISE:
        patch.setattr(module, "randn_tensor", lambda *_, **__: next(noises))


def walk_in_float64(
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    network: Callable[[torch.Tensor, float], torch.Tensor],
    patch: MonkeyPatch,
) -> torch.Tensor:
    """The last latent. Tables stay as the scheduler made them, in float32; what is done with them is in float64."""
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    x = noise.double() * scheduler.init_noise_sigma
    with patch.context() as widened:
        # Some of them cast the latent in every step.
        widened.setattr(torch, "float32", torch.float64)
        for timestep in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, timestep)
            x = scheduler.step(network(x_in, float(timestep)), timestep, x).prev_sample
    assert x.dtype is torch.float64
    return x

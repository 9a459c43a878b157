"""The noise schedule of a model, from its scheduler's config."""

from __future__ import annotations

from pathlib import Path

import torch

from safelight.engine.models.weights import Config
from safelight.engine.samplers import TIMESTEP_SPACINGS, NoiseSchedule, Spacing, alphas_from_betas
from safelight.errors import ModelError


def read_schedule(path: Path, config: Config) -> NoiseSchedule:
    """The noise schedule that `config`, read from `path`, describes. Raises ModelError where it is of
    an unknown kind."""
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(f"{path}: rescale_betas_zero_snr is not supported by this version; set it to false")
    spacing = config.get("timestep_spacing")
    if spacing is not None and spacing not in TIMESTEP_SPACINGS:
        raise ModelError(f"{path}: timestep_spacing {spacing} is unknown; known are {', '.join(TIMESTEP_SPACINGS)}")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(f"{path}: prediction_type {prediction} is not supported; known are epsilon and v_prediction")
    return NoiseSchedule(
        alphas_from_betas(_betas(path, config)),
        is_final_alpha_one=bool(config.get("set_alpha_to_one", True)),
        spacing=None if spacing is None else Spacing(str(spacing)),
        is_v_prediction=prediction == "v_prediction",
    )


def _betas(path: Path, config: Config) -> torch.Tensor:
    """[num_train_timesteps] in float32, by diffusers' formulas and defaults."""
    trained = config.get("trained_betas")
    if isinstance(trained, list):
        return torch.tensor(trained, dtype=torch.float32)
    start, end = _number(path, config, "beta_start", 0.0001), _number(path, config, "beta_end", 0.02)
    total = int(_number(path, config, "num_train_timesteps", 1000))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return torch.linspace(start, end, total, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    raise ModelError(f"{path}: beta_schedule {kind} is not supported; known are linear and scaled_linear")


def _number(path: Path, config: Config, name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(f"{path}: {name} is {value!r}, not a number")
    return value

"""From a folder in diffusers' layout to an ImageModel: what is in it is checked first, and only known classes are built."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from safelight.engine.models.base import ImageModel
from safelight.engine.samplers import TIMESTEP_SPACINGS, NoiseSchedule, Spacing, alphas_from_betas
from safelight.engine.tuning import DtypeName, Tuning, tune
from safelight.errors import ModelError

Config = dict[str, object]
"""A config.json as it came: every value is checked where it is used."""

COMPONENTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""What a folder of this family must hold. A safety checker or a feature extractor beside them is left alone."""


class ModelLoader:
    """Loads models for one device, in the dtype that is asked for or measured to be fastest."""

    def __init__(self, *, device: str, dtype: DtypeName, num_threads: int) -> None:
        self._device = device
        self._dtype: DtypeName = dtype
        self._num_threads = num_threads
        self._tuning: Tuning | None = None

    def prepare(self) -> None:
        """Import what models need, measure threads and dtype. Thread: engine."""
        from safelight.engine.models import unet  # noqa: F401, PLC0415 - slow to import: not before it is wanted

        self._tuning = tune(device=self._device, dtype=self._dtype, num_threads=self._num_threads)

    @property
    def tuning(self) -> Tuning | None:
        """How its models run; None before `prepare`."""
        return self._tuning

    def load(self, folder: Path) -> ImageModel:
        """The model in `folder`. Raises ModelError with the remedy. Any thread, once `prepare` is done."""
        assert self._tuning is not None
        return load_model(folder, device=self._tuning.device, dtype=self._tuning.dtype)


def load_model(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ImageModel:
    """The model in a folder of safetensors. Runs no code from it. Raises ModelError with the remedy."""
    check_family(folder)
    from safelight.engine.models.unet import load_unet_model  # noqa: PLC0415

    return load_unet_model(folder, read_schedule(folder), device=torch.device(device), dtype=dtype)


def check_family(folder: Path) -> None:
    """Raises ModelError unless model_index.json names a pipeline and components this version knows."""
    index = read_json(folder / "model_index.json")
    family = index.get("_class_name")
    if family != "StableDiffusionPipeline":
        raise ModelError(
            f"{folder} is a {family}; this version runs StableDiffusionPipeline (Stable Diffusion 1.x and 2.x)"
        )
    for name, known in COMPONENTS.items():
        entry = index.get(name)
        class_name = entry[-1] if isinstance(entry, list) and entry else None
        if class_name not in known:
            raise ModelError(f"{folder}: the {name} is a {class_name}; this version runs {' or '.join(known)}")
        if not (folder / name).is_dir():
            raise ModelError(f"{folder / name} is missing; download the model again")


def read_config(folder: Path, class_name: str) -> Config:
    """The config.json of a component. Raises ModelError when it is another class's."""
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    if named not in (None, class_name):
        raise ModelError(f"{folder / 'config.json'} is of a {named}; model_index.json says {class_name}")
    return config


def read_schedule(folder: Path) -> NoiseSchedule:
    """The noise schedule of scheduler/scheduler_config.json. Raises ModelError where it is of an unknown kind."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(f"{path}: rescale_betas_zero_snr is not supported by this version; set it to false")
    spacing = config.get("timestep_spacing")
    if spacing is not None and spacing not in TIMESTEP_SPACINGS:
        raise ModelError(f"{path}: timestep_spacing {spacing} is unknown; known are {', '.join(TIMESTEP_SPACINGS)}")
    return NoiseSchedule(
        alphas_from_betas(_betas(path, config)),
        is_final_alpha_one=bool(config.get("set_alpha_to_one", True)),
        spacing=None if spacing is None else Spacing(str(spacing)),
        is_v_prediction=prediction_type(folder) == "v_prediction",
    )


def prediction_type(folder: Path) -> str:
    """What the network predicts: `epsilon` or `v_prediction`. Raises ModelError for another."""
    path = folder / "scheduler" / "scheduler_config.json"
    named = read_json(path).get("prediction_type", "epsilon")
    if named not in ("epsilon", "v_prediction"):
        raise ModelError(f"{path}: prediction_type {named} is not supported; known are epsilon and v_prediction")
    return str(named)


def read_json(path: Path) -> Config:
    """A JSON object. Raises ModelError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; download the model again") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object; download the model again")
    return value


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

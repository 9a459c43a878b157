"""From weights on the disk to an ImageModel on a device."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from safelight.engine.models.base import ImageModel
from safelight.engine.models.blocks import keep_compiled
from safelight.engine.models.forwards import BackendName, Compiler
from safelight.engine.models.graphs import CudaCapture, GraphCompiler
from safelight.engine.models.openvino import OpenVINO
from safelight.engine.models.placing import estimate_bytes
from safelight.engine.tuning import DtypeName, Tuning, tune
from safelight.errors import ModelError
from safelight.families import check_model_path

if TYPE_CHECKING:
    from safelight.engine.models.unet import UNetModel


class ModelLoader:
    """Loads models for one device, in the dtype that is asked for or measured to be fastest."""

    def __init__(self, *, device: str, dtype: DtypeName, num_threads: int, backend: BackendName = "torch") -> None:
        self._device = device
        self._dtype: DtypeName = dtype
        self._num_threads = num_threads
        self._backend: BackendName = backend
        self._tuning: Tuning | None = None
        self._compiler: Compiler | None = None

    def prepare(self) -> None:
        """Import what models need, measure threads and dtype. Thread: engine."""
        if self._backend == "compiled":
            keep_compiled()
        from safelight.engine.models import unet  # noqa: F401, PLC0415 - slow to import: not before it is wanted

        self._tuning = tune(device=self._device, dtype=self._dtype, num_threads=self._num_threads)

    @property
    def tuning(self) -> Tuning | None:
        """How its models run; None before `prepare`."""
        return self._tuning

    def load(self, folder: Path) -> ImageModel:
        """The model in `folder`, compiled unless that takes long. Raises ModelError with the remedy. Any thread, once
        `prepare` is done."""
        assert self._tuning is not None
        if self._compiler is None:
            self._compiler = open_compiler(self._backend, self._tuning)
        model = load_model(folder, device=self._tuning.device, dtype=self._tuning.dtype)
        return self._compiled(model, takes_long=False)

    def compile(self, model: ImageModel) -> ImageModel:
        """What `load` gave, with what takes long done too. It shares the weights, and draws a little otherwise."""
        return self._compiled(model, takes_long=True)

    def _compiled(self, model: ImageModel, *, takes_long: bool) -> ImageModel:
        if self._compiler is None or self._compiler.takes_long != takes_long:
            return model
        return model.compiled(self._compiler)

    def estimate_bytes(self, folder: Path) -> int:
        """What the model in `folder` will hold on the device. Raises ModelError."""
        assert self._tuning is not None
        return estimate_bytes(folder, self._tuning.dtype)


def open_compiler(backend: BackendName, tuning: Tuning) -> Compiler | None:
    """What makes networks fast on this device; None where they run in torch. Raises ModelError where what is asked for
    cannot be had."""
    if tuning.device.type == "cuda" and backend in ("auto", "graphs", "compiled"):
        return GraphCompiler(CudaCapture(tuning.device).open, has_compiled_blocks=backend == "compiled")
    if backend in ("graphs", "compiled"):
        raise ModelError(f"engine.backend {backend} is for GPUs; set engine.backend to auto for {tuning.device}")
    return _open_openvino(tuning, is_asked_for=backend == "openvino") if backend != "torch" else None


def _open_openvino(tuning: Tuning, *, is_asked_for: bool) -> Compiler | None:
    is_fit = tuning.device.type == "cpu" and tuning.dtype in (torch.float32, torch.bfloat16)
    is_installed = importlib.util.find_spec("openvino") is not None
    if is_asked_for and not is_installed:
        raise ModelError("engine.backend is openvino, which is not installed; pip install 'safelight[openvino]'")
    if is_asked_for and not is_fit:
        dtype = str(tuning.dtype).removeprefix("torch.")
        raise ModelError(
            "engine.backend openvino is for CPUs in float32 or bfloat16;"
            f" set engine.backend to auto for {tuning.device} in {dtype}"
        )
    return OpenVINO(tuning, is_forced=is_asked_for) if is_fit and is_installed else None


def load_model(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> UNetModel:
    """The model in a folder of safetensors or in one checkpoint file. Runs no code from it. Raises ModelError with the
    remedy."""
    from safelight.engine.models.folders import open_folder  # noqa: PLC0415
    from safelight.engine.models.single_file import open_single_file  # noqa: PLC0415
    from safelight.engine.models.unet import build_model  # noqa: PLC0415

    check_model_path(path)
    files = open_single_file(path) if path.is_file() else open_folder(path)
    return build_model(files, device=torch.device(device), dtype=dtype)

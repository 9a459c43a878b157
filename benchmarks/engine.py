"""Step time by dtype, backend and rows, what the loop around the denoiser costs, and decoding:
`python -m benchmarks.engine`.

Without weights it builds random networks of pinhole's size. All contenders take turns in one process; medians, with the
10th and 90th percentile. `idle` is how much of the time the device had no step to do, with nobody measuring within.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from safelight.app import MAX_PROGRESS_SECONDS
from safelight.engine.engine import Engine
from safelight.engine.events import ImageReady, Pixels
from safelight.engine.models.base import Conditioning
from safelight.engine.models.forwards import BackendName
from safelight.engine.models.graphs import CAPTURE_AT
from safelight.engine.models.loading import load_model, open_compiler
from safelight.engine.models.text import ClipPrompt
from safelight.engine.models.unet import Parts, UNetModel
from safelight.engine.previews import Previewer
from safelight.engine.samplers import scaled_linear_schedule
from safelight.engine.tasks import Assignment
from safelight.engine.tuning import Tuning
from safelight.runs import RunParams, SamplerName

NUM_TOKENS, WIDTH = 32, 192

WARM_STEPS = CAPTURE_AT
"""Not measured: they warm caches up, and capture graphs."""


class RandomModel(UNetModel):
    """Networks of pinhole's size with random weights; prompts are noise."""

    num_prompt_tokens = NUM_TOKENS
    conditioning_shape = (NUM_TOKENS, WIDTH)

    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        torch.manual_seed(0)
        levels = {"down_block_types": ("DownEncoderBlock2D",) * 6, "up_block_types": ("UpDecoderBlock2D",) * 6}
        unet = UNet2DConditionModel(
            in_channels=16,
            out_channels=16,
            block_out_channels=(192, 384),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            cross_attention_dim=WIDTH,
            attention_head_dim=[3, 6],
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 64, 64, 128, 128), latent_channels=16, layers_per_block=1, **levels
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(vocab_size=99, hidden_size=WIDTH, num_hidden_layers=1, bos_token_id=0, eos_token_id=1)
        )
        networks: tuple[torch.nn.Module, ...] = (unet, vae, encoder)
        for network in networks:
            network.to(device, dtype).requires_grad_(False).eval()
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prompts = ClipPrompt(None, encoder)  # type: ignore[arg-type]
        super().__init__(Parts(prompts, unet, vae, True), scaled_linear_schedule())

    def encode(self, text: str, *, is_negative: bool = False, num_windows: int = 1) -> Conditioning:
        noise = torch.randn(num_windows * NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
        return Conditioning(noise.to(self.device, self._dtype))


@dataclass
class Timed:
    """An ImageModel with a stopwatch on the denoiser and the decoder."""

    model: UNetModel
    predicting: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def predict(self, *inputs: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        denoised = self.model.predict(*inputs)
        wait_for(self.model.device)
        self.predicting.append(time.perf_counter() - began)
        return denoised

    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        began = time.perf_counter()
        pixels = self.model.decode(latent, height, width)
        self.decoding.append(time.perf_counter() - began)
        return pixels


def wait_for(device: torch.device) -> None:
    """A GPU works on after the call: what is measured has to have ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    model: UNetModel, num_images: int, side: int, num_steps: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each step without decoding, of its denoiser call, and of each decode."""
    timed = Timed(model)
    engine = engine_with(timed, num_images, side, WARM_STEPS + num_steps)
    whole: list[float] = []
    while engine.has_work:
        began = time.perf_counter()
        events = engine.step()
        wait_for(model.device)
        if not any(isinstance(event, ImageReady) for _, event in events):
            whole.append(time.perf_counter() - began)
    return whole[WARM_STEPS:], timed.predicting[WARM_STEPS : len(whole)], timed.decoding


def measure_idle(model: UNetModel, num_images: int, side: int, num_steps: int) -> float:
    """The share of the time in which the device had no step to do."""
    engine = engine_with(model, num_images, side, WARM_STEPS + num_steps)
    for _ in range(WARM_STEPS):
        engine.step()
    began, before = time.perf_counter(), engine.figures.step_seconds
    # A GPU's step is told of while the next one runs: before and after by one.
    for _ in range(num_steps - 1):
        engine.step()
    return 1.0 - (engine.figures.step_seconds - before) / (time.perf_counter() - began)


def engine_with(model: Timed | UNetModel, num_images: int, side: int, num_steps: int) -> Engine:
    """One as a server has it, with so many images of different samplers to draw."""
    engine = Engine(progress_seconds=MAX_PROGRESS_SECONDS)
    engine.load("model", model)  # type: ignore[arg-type]
    for number in range(num_images):
        params = RunParams(
            prompt=f"prompt {number}",
            negative_prompt=f"not {number}",
            height=side,
            width=side,
            num_inference_steps=num_steps,
            sampler=list(SamplerName)[number % len(SamplerName)],
        )
        engine.submit(Assignment(str(number), "model", params, (0,)))
    return engine


def measure_preview(model: UNetModel, side: int) -> list[float]:
    """Seconds of each preview, after the first: that one fits the map."""
    previewer, seconds = Previewer(model), []
    for number in range(20):
        latent = torch.randn(model.latent_shape(side, side), generator=torch.Generator().manual_seed(number))
        latent = latent.to(model.device)
        began = time.perf_counter()
        previewer.pixels(latent)
        seconds.append(time.perf_counter() - began)
    return seconds


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{1000 * statistics.median(seconds):8.2f} ({1000 * low:.2f} to {1000 * high:.2f})"


def build(asked: argparse.Namespace, dtype: str, backend: BackendName) -> UNetModel:
    """A contender."""
    tuning = Tuning(torch.device(asked.device), getattr(torch, dtype), asked.threads)
    model: UNetModel
    if asked.model:
        model = load_model(asked.model, device=tuning.device, dtype=tuning.dtype)
    else:
        model = RandomModel(tuning.dtype, asked.device)
    compiler = open_compiler(backend, tuning)
    return model if compiler is None else model.compiled(compiler)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of weights; without it, random ones of pinhole's size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8], help="guided images, two rows each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--backends", nargs="+", default=["torch"], help="as the setting engine.backend")
    return parser.parse_args()


def main() -> None:
    asked = parse()
    torch.set_num_threads(asked.threads)
    device = torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else platform.machine()
    print(f"{device}, torch {torch.__version__}, {asked.threads} threads, {asked.side} px")
    print(
        f"{'dtype, backend':18} {'rows':>4}  {'step ms, median (p10 to p90)':34} {'ms/row':>7} {'loop ms':>7}"
        f" {'share':>6} {'idle':>6}  decode ms"
    )
    models = {
        f"{dtype} {backend}": build(asked, dtype, backend) for dtype in asked.dtypes for backend in asked.backends
    }
    for num_images in asked.images:
        for name, model in models.items():
            whole, predicting, decoding = measure(model, num_images, asked.side, asked.steps)
            idle = measure_idle(model, num_images, asked.side, asked.steps)
            median = statistics.median(whole)
            loop = statistics.median([step - predict for step, predict in zip(whole, predicting, strict=True)])
            print(
                f"{name:18} {2 * num_images:4}  {spread(whole):34} {1000 * median / (2 * num_images):7.2f}"
                f" {1000 * loop:7.2f} {loop / median:6.1%} {idle:6.1%} {spread(decoding)}",
                flush=True,
            )
    for name, model in models.items():
        print(f"{name:18} preview ms, at most one a second: {spread(measure_preview(model, asked.side))}")


if __name__ == "__main__":
    main()

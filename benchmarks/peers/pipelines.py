"""What the peers share: the predict contract's example request, diffusers' pipeline at its best, and
static batches of it."""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import time
import uuid
from collections.abc import Sequence

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL.Image import Image
from pydantic import BaseModel

from benchmarks.servers import DEVICE, MODEL, PINHOLE
from safelight.engine.models.forwards import Compiler
from safelight.engine.models.openvino import OpenVINO
from safelight.engine.tuning import tune

SCHEDULERS = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}

MAX_BATCH_SIZE = 8
BATCH_SECONDS = 0.05


class Request(BaseModel):
    prompt: str
    negative_prompt: str = ""
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = "euler"
    seed: int = 0
    height: int = 512
    width: int = 512
    num_images_per_prompt: int = 1

    @property
    def shared(self) -> tuple[object, ...]:
        """What is one argument for a whole batch of diffusers' pipeline: only requests equal in it can be one."""
        return (
            self.num_inference_steps,
            self.guidance_scale,
            self.sampler,
            self.height,
            self.width,
            self.num_images_per_prompt,
        )


class Pipeline:
    """diffusers' pipeline, in torch or with its networks in OpenVINO."""

    def __init__(self, *, model: str, device: str, dtype: str, threads: int, backend: str) -> None:
        num_threads = torch.get_num_threads() if threads == 0 else max(0, threads)
        tuning = tune(device=device, dtype=dtype, num_threads=num_threads)
        self._pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=tuning.dtype).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        if backend == "openvino":
            compile_networks(self._pipeline, OpenVINO(tuning))

    def draw(self, requests: Sequence[Request]) -> list[dict[str, object]]:
        """One answer each. Requests that can share a batch do; the others take their turns."""
        together: dict[tuple[object, ...], list[int]] = {}
        for place, request in enumerate(requests):
            together.setdefault(request.shared, []).append(place)
        answers: dict[int, dict[str, object]] = {}
        for places in together.values():
            answers |= zip(places, self._draw_equal([requests[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(requests))]

    def _draw_equal(self, requests: Sequence[Request]) -> list[dict[str, object]]:
        first, began = requests[0], time.perf_counter()
        self._pipeline.scheduler = SCHEDULERS[first.sampler].from_config(self._pipeline.scheduler.config)
        count = first.num_images_per_prompt
        images = self._pipeline(
            [request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            height=first.height,
            width=first.width,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(request.seed + n) for request in requests for n in range(count)],
        ).images
        run_time_ms = 1000 * (time.perf_counter() - began)
        return [
            {
                "run_id": str(uuid.uuid4()),
                "run_time_ms": run_time_ms,
                "result": [encode(image) for image in images[count * place : count * (place + 1)]],
            }
            for place in range(len(requests))
        ]


def compile_networks(pipeline: StableDiffusionPipeline, compiler: Compiler) -> None:
    """The networks as Safelight compiles them, called by diffusers' own loop."""
    unet, vae = pipeline.unet, pipeline.vae
    side = unet.config["sample_size"]
    x = torch.zeros(1, unet.config["in_channels"], side, side, dtype=unet.dtype)
    window = pipeline.tokenizer.model_max_length
    hidden = torch.zeros(1, window, unet.config["cross_attention_dim"], dtype=unet.dtype)
    denoise = compiler.unet(copy.deepcopy(unet), x, torch.zeros(1), encoder_hidden_states=hidden)
    decode = compiler.decoder(copy.deepcopy(vae), x)

    def forward(x: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object) -> object:
        timesteps = timestep.float().expand(len(x))
        out = denoise(x, timesteps, return_dict=False, encoder_hidden_states=encoder_hidden_states)[0]
        return (out.to(x.dtype),)

    def decode_all(latents: torch.Tensor, **_: object) -> object:
        return (torch.cat([decode(latent[None], return_dict=False)[0] for latent in latents]),)

    unet.forward, vae.decode = forward, decode_all


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments of every peer."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--model", default=os.environ.get(MODEL, str(PINHOLE)))
    made.add_argument("--device", default=os.environ.get(DEVICE, "cpu"))
    made.add_argument("--dtype", default="float32", help="auto: the fastest here")
    made.add_argument("--threads", type=int, default=0, help="0: torch's own choice; -1: the fastest here")
    made.add_argument("--backend", default="torch", choices=("torch", "openvino"))
    return made


def encode(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()

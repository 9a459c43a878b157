"""The server that people write first: FastAPI, a diffusers pipeline, and a lock around it."""

from __future__ import annotations

import argparse
import base64
import io
import threading
import time
import uuid

import torch
import uvicorn
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.servers import PINHOLE

SCHEDULERS = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}


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


def build(pipeline: StableDiffusionPipeline) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/pinhole/predict")
    def predict(request: Request) -> dict[str, object]:
        arguments = request.model_dump()
        sampler, seed = arguments.pop("sampler"), arguments.pop("seed")
        with lock:
            began = time.perf_counter()
            pipeline.scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config)
            images = pipeline(**arguments, generator=torch.Generator().manual_seed(seed)).images
            run_time_ms = 1000 * (time.perf_counter() - began)
        return {"run_id": str(uuid.uuid4()), "run_time_ms": run_time_ms, "result": [_encode(image) for image in images]}

    return app


def _encode(image: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default=str(PINHOLE))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=getattr(torch, options.dtype))
    pipeline.set_progress_bar_config(disable=True)
    uvicorn.run(build(pipeline), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()

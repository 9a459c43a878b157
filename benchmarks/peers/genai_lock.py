"""OpenVINO GenAI's own pipeline behind FastAPI and a lock. It draws what was exported for it beforehand:

    optimum-cli export openvino --model safelight/pinhole --task text-to-image FOLDER
    convert_tokenizer safelight/pinhole/tokenizer -o FOLDER/tokenizer --use-max-padding

(packages optimum-intel and openvino-tokenizers, in an environment of their own). It has no DPM-Solver++, and
its DDIM refuses pinhole's configuration: such requests are drawn with Euler, whose steps cost the same.
"""

from __future__ import annotations

import argparse
import time
import uuid

import openvino_genai
import torch
import uvicorn
from PIL import Image

from benchmarks.peers.diffusers_lock import build
from benchmarks.peers.pipelines import Request, encode
from safelight.engine.tuning import tune

EULER = openvino_genai.Scheduler.Type.EULER_DISCRETE
ANCESTRAL = openvino_genai.Scheduler.Type.EULER_ANCESTRAL_DISCRETE


class Pipeline:
    """One picture at a time, in the dtype and with the threads that Safelight would take here."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        tuning = tune(device="cpu", dtype="auto", num_threads=0)
        hint = "bf16" if tuning.dtype is torch.bfloat16 else "f32"
        options = {"INFERENCE_NUM_THREADS": tuning.num_threads, "INFERENCE_PRECISION_HINT": hint}
        self._pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", **options)

    def draw(self, request: Request) -> dict[str, object]:
        began = time.perf_counter()
        kind = ANCESTRAL if request.sampler == "euler_ancestral" else EULER
        config = f"{self._folder}/scheduler/scheduler_config.json"
        self._pipeline.set_scheduler(openvino_genai.Scheduler.from_config(config, kind))
        negative = {"negative_prompt": request.negative_prompt} if request.guidance_scale > 1 else {}
        pixels = self._pipeline.generate(
            request.prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.num_images_per_prompt,
            rng_seed=request.seed,
            **negative,
        ).data
        return {
            "run_id": str(uuid.uuid4()),
            "run_time_ms": 1000 * (time.perf_counter() - began),
            "result": [encode(Image.fromarray(each)) for each in pixels],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", required=True, help="what was exported")
    options = parser.parse_args()
    uvicorn.run(build(Pipeline(options.folder).draw), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()

"""What the first use of a LoRA takes: `python -m benchmarks.loras`. Reading its file and laying it beside the
model, nothing else.

The files are written here: rank 16 for every attention layer of the denoiser, in half precision. `pinhole` is the model
in the box; "SDXL-size" is the denoiser of Stable Diffusion XL with its 2.6 billion numbers left as they are found,
since only their places matter. Processor time on one thread; a later use, which finds it there, is shown beside it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file

from benchmarks.machine import describe
from safelight.catalog import PINHOLE_FOLDER
from safelight.engine.models.adapters import Adapters
from safelight.engine.models.loading import load_model

GOAL_SECONDS = 1.0
RANK = 16
CHANGED = re.compile(r"attn\d\.to_(q|k|v|out\.0)$")

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def pinhole() -> torch.nn.Module:
    return load_model(PINHOLE_FOLDER, dtype=torch.bfloat16).networks[1]


def sdxl() -> torch.nn.Module:
    with torch.device("meta"):
        unet: torch.nn.Module = UNet2DConditionModel(**SDXL)
    return unet._apply(lambda each: torch.empty_like(each, dtype=torch.bfloat16, device="cpu"))


def write_lora(unet: torch.nn.Module, file: Path) -> int:
    """As diffusers saves them; the number of layers."""
    tensors = {}
    layers = {name: module for name, module in unet.named_modules() if CHANGED.search(name)}
    for name, layer in layers.items():
        rows, columns = layer.get_parameter("weight").shape
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, columns).half()
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, RANK).half()
    save_file(tensors, file)
    return len(layers)


def measure(unet: torch.nn.Module, file: Path, num_turns: int) -> tuple[list[float], float]:
    """Seconds of first uses, each by adapters of its own, and of one more use."""
    found: list[float] = []
    for _ in range(num_turns):
        adapters = Adapters({"unet": unet})
        adapters.register({"lora": file})
        found.append(_seconds_of(adapters))
    return found, _seconds_of(adapters)


def _seconds_of(adapters: Adapters) -> float:
    began = time.process_time()
    adapters.load("lora")
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    for title, make in (("pinhole", pinhole), ("SDXL-size", sdxl)):
        unet = make()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lora.safetensors"
            num_layers, num_bytes = write_lora(unet, file), file.stat().st_size
            first, later = measure(unet, file, asked.turns)
        spread = f"{statistics.median(first):.3f} s of CPU ({min(first):.3f} to {max(first):.3f})"
        goal = f"; goal {GOAL_SECONDS} s" if title == "pinhole" else ""
        print(f"{title}: {num_layers} layers, {num_bytes / 1e6:.0f} MB; first use {spread}{goal}; later {later:.6f} s")


if __name__ == "__main__":
    main()

"""What networks take while they draw, beside what the engine plans with: `python -m benchmarks.memory`.

Each case is a process of its own on the CPU: networks with random weights, one call to warm up, then the most memory at
one moment of a second call beyond what was there before it. Bytes for each pixel of the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.table import Table

from benchmarks import make_weights
from benchmarks.machine import publish
from benchmarks.servers import PINHOLE
from safelight.engine.memory import DECODE_BYTES, ROW_BYTES

NUM_TOKENS = 77

MODELS = ("pinhole", "SD 2.1")

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Every tensor is a mapping of its own: what is freed is gone at once, and what is counted was in use."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--case", nargs=4, metavar=("NETWORKS", "PART", "SIDE", "ROWS"), help="one, in this process")
    asked = parser.parse_args()
    if asked.case:
        name, part, side, rows = asked.case
        print(_peak(_call(name, part, int(side), int(rows), getattr(torch, asked.dtype))))
        return
    table = Table(title=f"bytes for each pixel while drawing, {asked.dtype}")
    for heading in ("networks", "side", "decode", "planned", "rows", "step, each row", "planned"):
        table.add_column(heading)
    for name in MODELS:
        for side in asked.sides:
            decode = _measured(name, "decode", side, 1, asked.dtype)
            for rows in asked.rows:
                step = _measured(name, "step", side, rows, asked.dtype)
                table.add_row(
                    name, str(side), f"{decode:.0f}", str(DECODE_BYTES), str(rows), f"{step:.0f}", str(ROW_BYTES)
                )
    publish("memory", table)


def _measured(name: str, part: str, side: int, rows: int, dtype: str) -> float:
    """In a process of its own: what the allocator keeps from one case must not serve the next."""
    case = [sys.executable, "-m", "benchmarks.memory", "--dtype", dtype, "--case", name, part, str(side), str(rows)]
    done = subprocess.run(case, capture_output=True, text=True, check=True, env=os.environ | EXACT)
    return int(done.stdout) / side**2 / rows


def _configs(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the denoiser and the autoencoder."""
    if name == "SD 2.1":
        return make_weights.UNET, make_weights.VAE
    unet, vae = (json.loads((PINHOLE / part / "config.json").read_text()) for part in ("unet", "vae"))
    return unet, vae


def _call(name: str, part: str, side: int, rows: int, dtype: torch.dtype) -> Callable[[], object]:
    torch.set_num_threads(1)
    unet_config, vae_config = _configs(name)
    factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    x = torch.randn(rows, unet_config["in_channels"], side // factor, side // factor)
    x = x.to(dtype, memory_format=torch.channels_last)
    if part == "decode":
        vae = _filled(AutoencoderKL, vae_config, dtype)
        return lambda: vae.decode(x)
    unet = _filled(UNet2DConditionModel, unet_config, dtype)
    hidden = torch.randn(rows, NUM_TOKENS, unet_config["cross_attention_dim"]).to(dtype)
    return lambda: unet(x, torch.full((rows,), 500.0), hidden)


def _filled(network: type[Any], config: dict[str, Any], dtype: torch.dtype) -> Any:
    """With weights of one value: sizes decide."""
    with torch.device("meta"):
        made = network.from_config(config).to(dtype)
    made = made.to_empty(device="cpu").to(memory_format=torch.channels_last).requires_grad_(False).eval()
    for tensor in made.state_dict().values():
        tensor.fill_(0.001)
    return made


@torch.inference_mode()
def _peak(call: Callable[[], object]) -> int:
    """Bytes of anonymous memory at the worst moment of the second call, by a thread that looks every millisecond."""
    call()
    before = most = _anonymous()
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, _anonymous())

    looking = threading.Thread(target=look)
    looking.start()
    call()
    done.set()
    looking.join()
    return most - before


def _anonymous() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()

"""One picture of a whole model through a real server, beside the one diffusers draws:
`python -m benchmarks.end_to_end FOLDER`.

FOLDER is one in diffusers' layout, such as `python -m benchmarks.make_weights FOLDER` writes: the exact Stable
Diffusion 2.1. The server is asked over HTTP; afterwards diffusers' own pipeline draws the same in a process of its own,
in the same dtype. Exits with 1 where the two differ by more than the dtype explains.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from rich.table import Table

from benchmarks.machine import publish
from benchmarks.servers import Target, safelight
from safelight.catalog import name_for
from safelight.client import Client
from safelight.pictures import Pixels, read_pixels

PROMPT, NEGATIVE, SEED, GUIDANCE = "a red house on a green hill", "snow", 7, 7.5

TOLERANCES = {"float32": ("largest", 1.0), "bfloat16": ("mean", 8.0)}
"""In steps of 1/255. In bfloat16 the two round at other places: diffusers keeps the picture itself in it between the
steps, Safelight the networks alone; single pixels may then be far apart, and the mean is what tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The picture."""

    folder: Path
    dtype: str
    side: int
    num_steps: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Drawn:
    """Who drew it, and what it took. `work_seconds` is the drawing alone, `seconds` all that the caller waited for."""

    name: str
    pixels: Pixels
    seconds: float
    work_seconds: float
    load_seconds: float
    peak_bytes: int


def ask_server(asked: Asked) -> Drawn:
    """Start a server with the folder deployed, ask it, and look how much memory its worker had at most."""
    name = name_for(str(asked.folder))
    environment = {"SAFELIGHT_ENGINE__DTYPE": asked.dtype, "SAFELIGHT_ENGINE__BACKEND": "torch"}
    with safelight(model=str(asked.folder), **environment) as target, Client(target.url, target.key) as client:
        began = time.perf_counter()
        answer = client.predict(
            name,
            PROMPT,
            negative_prompt=NEGATIVE,
            height=asked.side,
            width=asked.side,
            num_inference_steps=asked.num_steps,
            guidance_scale=GUIDANCE,
            seed=SEED,
            sampler="euler",
        )
        seconds = time.perf_counter() - began
        return Drawn(
            name="Safelight, over HTTP",
            pixels=read_pixels(answer.image_bytes[0]),
            seconds=seconds,
            work_seconds=answer.run_time_ms / 1000,
            load_seconds=_load_seconds(target, name),
            peak_bytes=_peak_bytes(_worker_of(target.pid)),
        )


def ask_diffusers(asked: Asked) -> Drawn:
    """In a process of its own, so that its memory is its own too."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        command = [sys.executable, "-m", "benchmarks.end_to_end", str(asked.folder), "--dtype", asked.dtype]
        command += ["--side", str(asked.side), "--steps", str(asked.num_steps), "--diffusers-into", file.name]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        pixels: Pixels = np.load(file.name)
    return Drawn(name="diffusers", pixels=pixels, **json.loads(said.splitlines()[-1]))


def draw_with_diffusers(asked: Asked, into: Path) -> None:
    """As its documentation says, but for the noise, which is drawn in float32 whatever the dtype."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    from diffusers.utils import logging as progress
    from transformers.utils import logging as more_progress

    progress.disable_progress_bar()
    more_progress.disable_progress_bar()
    began = time.perf_counter()
    dtype = getattr(torch, asked.dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(
        asked.folder, variant="fp16", torch_dtype=dtype, safety_checker=None, local_files_only=True
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    cells = asked.side // pipeline.vae_scale_factor
    noise = torch.randn(
        1, pipeline.unet.config.in_channels, cells, cells, generator=torch.Generator().manual_seed(SEED)
    )
    drawn = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=asked.side,
        width=asked.side,
        num_inference_steps=asked.num_steps,
        guidance_scale=GUIDANCE,
        latents=noise.to(dtype),
        output_type="np",
    ).images[0]
    ended = time.perf_counter()
    np.save(into, (drawn * 255).round().astype(np.uint8))
    took = {"seconds": ended - began, "work_seconds": ended - loaded, "load_seconds": loaded - began}
    print(json.dumps(took | {"peak_bytes": _peak_bytes(None)}))


def report(asked: Asked, ours: Drawn, theirs: Drawn) -> bool:
    """Print the table; whether the pictures are the same within the tolerance."""
    apart = np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int))
    table = Table(title=f"{asked.folder.name}: one picture, {asked.side} px, {asked.num_steps} steps, {asked.dtype}")
    for column in ("", "waited", "drawing", "loading", "peak memory (VmHWM)"):
        table.add_column(column, justify="left" if not column else "right")
    for drawn in (ours, theirs):
        seconds = (drawn.seconds, drawn.work_seconds, drawn.load_seconds)
        table.add_row(drawn.name, *(f"{each:.1f} s" for each in seconds), f"{drawn.peak_bytes / 1e9:.2f} GB")
    publish("end_to_end", table)
    figure, most = TOLERANCES[asked.dtype]
    found = {"largest": float(apart.max()), "mean": float(apart.mean())}
    is_same = found[figure] <= most
    print(f"difference in steps of 1/255: largest {found['largest']:.0f}, mean {found['mean']:.3f}", end="; ")
    print(f"at most {most:g} is allowed for the {figure} in {asked.dtype}: {'held' if is_same else 'NOT HELD'}")
    return is_same


def _load_seconds(target: Target, name: str) -> float:
    answer = httpx2.get(f"{target.url}/deployments", headers={"authorization": target.key}, trust_env=False)
    deployed = answer.raise_for_status().json()["deployments"]
    return float(next(each["load_seconds"] for each in deployed if each["name"] == name))


def _worker_of(supervisor: int) -> int:
    """The process of the server that holds the model."""
    return next(pid for pid in _children(supervisor) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _children(parent: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in status.read_text()
        except OSError:
            continue
        if is_child:
            yield int(status.parent.name)


def _peak_bytes(pid: int | None) -> int:
    """The most memory that was resident at once, mapped files among it."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--diffusers-into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    asked = Asked(folder=given.folder.resolve(), dtype=given.dtype, side=given.side, num_steps=given.steps)
    if given.diffusers_into is not None:
        draw_with_diffusers(asked, given.diffusers_into)
    elif not report(asked, ask_server(asked), ask_diffusers(asked)):
        sys.exit(1)


if __name__ == "__main__":
    main()

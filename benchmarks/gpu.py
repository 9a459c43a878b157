"""Step times and serving on a GPU, with Stable Diffusion 2.1's exact architecture at random weights:
`python -m benchmarks.gpu`.

It runs benchmarks.engine, then benchmarks.serving against a lock around diffusers and request batching, all on the same
device. `--tiny` does the same with pinhole, small, on a CPU: not for its figures, but to see that the commands work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.make_weights import write_model
from benchmarks.servers import DEVICE, MODEL, PINHOLE

Commands = tuple[tuple[str, ...], ...]

STEPS = ("engine", "--steps", "20", "--images", "1", "2", "4", "8")

ON_GPU: Commands = (
    (*STEPS, "--side", "512", "--dtypes", "bfloat16", "--backends", "torch", "graphs", "compiled"),
    (*STEPS, "--side", "512", "--dtypes", "float32", "--backends", "torch", "graphs"),
    (*STEPS, "--side", "768", "--dtypes", "bfloat16", "--backends", "torch", "graphs", "compiled"),
    ("serving", "--clients", "16", "--requests", "64", "--side", "512"),
    ("serving", "--clients", "1", "--requests", "8", "--side", "512", "--load", "0"),
)
"""Modules of this package and their arguments."""

TINY: Commands = (
    ("engine", "--steps", "3", "--images", "1", "2", "--dtypes", "bfloat16", "--side", "64"),
    ("serving", "--clients", "2", "--requests", "2", "--rounds", "1", "--side", "64", "--load", "0"),
)

CONTENDERS = ("lock", "lock-best", "litserve", "safelight-torch")

WITH_GRAPHS = "safelight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="pinhole at 64 px on the CPU")
    parser.add_argument(
        "--folder", type=Path, help="where the weights (2.6 GB) are or go; unset: written for this run only"
    )
    asked = parser.parse_args()
    if asked.tiny:
        run(TINY, PINHOLE, "cpu")
    elif not torch.cuda.is_available():
        sys.exit("torch finds no GPU on this machine; --tiny runs the same commands on the CPU, with pinhole at 64 px")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = asked.folder or Path(scratch) / "sd21-random"
            if not folder.exists():
                write_model(folder)
            run(ON_GPU, folder, "cuda:0")


def run(commands: Commands, model: Path, device: str) -> None:
    """One after the other; raises CalledProcessError where one fails."""
    environment = os.environ | {MODEL: str(model), DEVICE: device}
    for module, *arguments in commands:
        if module == "engine":
            arguments += ["--model", str(model), "--device", device]
        else:
            contenders = CONTENDERS if device == "cpu" else (*CONTENDERS, WITH_GRAPHS)
            arguments += [word for name in contenders for word in ("--only", name)]
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], env=environment, check=True)


if __name__ == "__main__":
    main()

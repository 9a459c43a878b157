"""`python -m training.pinhole --hours 2`: every stage in order, each within its share of the time.

Killed at any point and started again, it goes on from the last checkpoint. One stage alone: `--stage decoder`.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from training.pinhole import stages
from training.pinhole.export import SHIPPED, adopt, export
from training.pinhole.trainer import Budget, DiskFullError

WORK = Path(__file__).parent / "work"

STAGES: dict[str, tuple[float, Callable[[Path, Budget], object]]] = {
    "text": (0.1, stages.train_text_encoder),
    "encoder": (0.12, stages.train_encoder),
    "latents": (0.1, stages.make_latents),
    "denoiser": (0.5, stages.train_denoiser),
    "decoder": (0.18, stages.train_decoder),
}
"""The stages in order, each with its share of the hours."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pinhole", description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="for everything, or for the one stage named by --stage")
    parser.add_argument("--stage", choices=STAGES, help="this stage only; those before it must have run")
    parser.add_argument("--from", dest="start", choices=("scratch", "shipped"), default="scratch",
                        help="where to start when there is no checkpoint: nothing, or the weights in the package")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoints are kept")
    parser.add_argument("--export", action="store_true", help="only write the newest checkpoints into the package")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        if chosen.start == "shipped":
            adopt(SHIPPED, chosen.work)
        if not chosen.export:
            _run(chosen.work, chosen.hours * 3600, chosen.stage)
        if chosen.export or chosen.stage is None:
            export(chosen.work)
    except DiskFullError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(work: Path, seconds: float, only: str | None) -> None:
    for name, (share, run) in STAGES.items():
        if only in (None, name):
            print(f"stage {name}", flush=True)
            run(work, Budget(seconds=seconds if only else seconds * share))


if __name__ == "__main__":
    sys.exit(main())

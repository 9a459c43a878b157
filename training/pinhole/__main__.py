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
from training.pinhole.files import DiskFullError, saying_when_full
from training.pinhole.trainer import Budget

WORK = Path(__file__).parent / "work"

STAGES: dict[str, tuple[float, Callable[[Path, Budget], object]]] = {
    "text": (0.1, stages.train_text_encoder),
    "latents": (0.05, stages.make_latents),
    "denoiser": (0.4, stages.train_denoiser),
    "echoes": (0.05, stages.make_echoes),
    "decoder": (0.35, stages.train_decoder),
    "encoder": (0.05, stages.train_encoder),
}
"""The stages in order, each with its share of the hours."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pinhole", description=__doc__)
    parser.add_argument(
        "--hours", type=float, default=2.0, help="for everything, or for the one stage named by --stage"
    )
    parser.add_argument("--stage", choices=STAGES, help="this stage only; those before it must have run")
    parser.add_argument(
        "--from",
        dest="start",
        choices=("scratch", "shipped"),
        default="scratch",
        help="where to start when there is no checkpoint: nothing, or the weights in the package",
    )
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoints are kept")
    parser.add_argument("--export", action="store_true", help="only write the newest checkpoints into the package")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        with saying_when_full(str(chosen.work)):
            _do(chosen)
    except DiskFullError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _do(chosen: argparse.Namespace) -> None:
    if chosen.start == "shipped":
        adopt(SHIPPED, chosen.work)
    if not chosen.export:
        # The denoiser and its words belong together: who starts from the shipped ones keeps the words.
        skipped = {"text"} if chosen.start == "shipped" else set()
        _run(chosen.work, chosen.hours * 3600, {chosen.stage} if chosen.stage else set(STAGES) - skipped)
    if chosen.export or chosen.stage is None:
        export(chosen.work)


def _run(work: Path, seconds: float, wanted: set[str]) -> None:
    """The time is divided among the wanted stages by their shares."""
    total = sum(STAGES[name][0] for name in wanted)
    for name, (share, run) in STAGES.items():
        if name in wanted:
            print(f"stage {name}", flush=True)
            run(work, Budget(seconds=seconds * share / total))


if __name__ == "__main__":
    sys.exit(main())

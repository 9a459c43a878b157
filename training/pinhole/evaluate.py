"""`python -m training.pinhole.evaluate`: what the shipped weights can do, as one table and two contact sheets.

The detector is tried first on true renders and on shuffled answers; where it would not see a perfect picture, or would
praise a wrong one, there is nothing to measure and this refuses.
"""

import argparse
import datetime
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from training.pinhole.export import SHIPPED
from training.pinhole.generate import Request, contact_sheet, generate, load_pipeline
from training.pinhole.judge import Reading, read
from training.pinhole.report import Report, write_report
from training.pinhole.scenes import render
from training.pinhole.scoring import OTHER_SEED, SEED, Question, draw_questions, riding_questions, score, shuffled

LOWEST_CEILING = 0.95
EXAMPLE_PROMPT = "a photo of an astronaut riding a horse on mars."
IMAGES = Path(__file__).parents[2] / "docs" / "images"
REPORT = Path(__file__).parent / "EVALUATION.md"

SHEET_PROMPTS = (
    "an astronaut riding a horse on mars",
    "a red house in the snow",
    "a cat next to a flower in a meadow",
    "a rocket in space",
    "a boat at sea",
    "three yellow stars at night",
    "a purple heart",
    "a cat riding a fish at sea",
    "a blue square left of an orange circle",
    "a tree in the desert",
    "a mountain in the snow",
    "a white horse in a meadow",
    "the moon above a house at night",
    "four pink hearts on a blue background",
    "a green fish",
    "a black cat on a red square",
)


class JudgeError(RuntimeError):
    """The detector does not see true renders for what they are."""


def ask(pipeline: StableDiffusionPipeline, questions: Sequence[Question], request: Request) -> list[np.ndarray]:
    return generate(pipeline, [q.prompt for q in questions], [q.seed for q in questions], request)


def _draw_questions(each: int, seed: int) -> list[Question]:
    kinds = dict.fromkeys(("shape", "thing", "pair", "count"), each)
    return draw_questions(kinds, seed) + riding_questions(each // 2, seed)


@cache
def _readers() -> ProcessPoolExecutor:
    """Reading takes longer than drawing; it is done on every core."""
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))


def read_all(pictures: Sequence[np.ndarray]) -> list[Reading]:
    """What the judge sees in each picture."""
    return list(_readers().map(read, pictures, chunksize=4))


def check_judge(questions: Sequence[Question], width: int, height: int) -> tuple[dict[str, float], dict[str, float]]:
    """Ceiling and shuffled control. Raises JudgeError below a ceiling of 0.95."""
    readings = read_all([render(question.scene, width, height) for question in questions])
    ceiling = {measure: share for measure, (share, _) in score(questions, readings).items()}
    control = {measure: share for measure, (share, _) in score(questions, shuffled(questions, readings)).items()}
    low = {measure: share for measure, share in ceiling.items() if share < LOWEST_CEILING}
    if low:
        raise JudgeError(f"true renders score below {LOWEST_CEILING}: {low}")
    return ceiling, control


def measure_sizes(pipeline: StableDiffusionPipeline, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """The scores of a part of the questions at every size."""
    scores = {}
    for width, height in ((256, 256), (384, 384), (512, 512), (512, 768)):
        pictures = ask(pipeline, questions, Request(width, height))
        found = score(questions, read_all(pictures))
        scores[f"{width} x {height}"] = {measure: share for measure, (share, _) in found.items()}
    return scores


def measure_guidance(pipeline: StableDiffusionPipeline, questions: Sequence[Question]) -> dict[float, float]:
    """Share of everything right at each guidance."""
    shares = {}
    for guidance in (1.0, 3.0, 7.5, 12.0):
        found = score(questions, read_all(ask(pipeline, questions, Request(guidance=guidance))))
        right = sum(share * count for share, count in found.values())
        shares[guidance] = right / sum(count for _, count in found.values())
    return shares


def measure_negatives(pipeline: StableDiffusionPipeline, count: int) -> dict[str, tuple[float, float]]:
    """How often what a prompt gets most is seen without, and with, its name as the negative prompt."""

    def look(prompt: str, negative: str, first_seed: int) -> list[Reading]:
        seeds = range(first_seed, first_seed + count)
        return read_all(generate(pipeline, [prompt] * count, seeds, Request(negative_prompt=negative)))

    found = {}
    for prompt, seen_in in (("a circle", _colours), ("a landscape", _setting)):
        # What that is, other seeds say: whatever comes most of all in some pictures comes less often in others.
        seen = Counter(each for reading in look(prompt, "", count) for each in seen_in(reading))
        for name, _ in seen.most_common(1):
            shares = [
                float(np.mean([name in seen_in(reading) for reading in look(prompt, negative, 0)]))
                for negative in ("", name, f"no {name}")
            ]
            found[f"“{prompt}”, negative “{name}”"] = (shares[0], shares[1])
            found[f"“{prompt}”, negative “no {name}”"] = (shares[0], shares[2])
    return found


def _colours(reading: Reading) -> set[str]:
    return {item.colour for item in reading.items if item.colour}


def _setting(reading: Reading) -> set[str]:
    return {reading.setting}


def measure_seconds(pipeline: StableDiffusionPipeline) -> float:
    """One picture of 512 by 512, 50 steps, guidance 7.5, two threads; the second of two, when everything is warm."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for _ in range(2):
        began = time.perf_counter()
        generate(pipeline, [EXAMPLE_PROMPT], [0], Request(num_steps=50, guidance=7.5))
        seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return seconds


def draw_sheets(pipeline: StableDiffusionPipeline) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pictures = generate(pipeline, SHEET_PROMPTS, [7] * len(SHEET_PROMPTS), Request(num_steps=30))
    sheet = contact_sheet(pictures, 4, margin=12)
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(IMAGES / "pinhole.png", optimize=True)
    pictures = generate(pipeline, [EXAMPLE_PROMPT] * 8, range(8), Request(512, 768, num_steps=30, guidance=7.5))
    sheet = contact_sheet(pictures, 4, margin=12)
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(IMAGES / "pinhole-astronaut.png", optimize=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pinhole.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--each", type=int, default=40, help="questions of each kind")
    parser.add_argument(
        "--every", type=int, default=4, help="one question in so many is asked at other sizes and guidances"
    )
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--machine", default="a CPU", help="the class of machine, for the table")
    parser.add_argument("--samples", default="not said", help="how many samples the denoiser has seen, for the table")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    each = chosen.each
    questions, others = (_draw_questions(each, seed) for seed in (SEED, OTHER_SEED))
    try:
        ceiling, control = check_judge(questions + others, 512, 512)
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 1
    pipeline = load_pipeline(chosen.weights)
    found = score(questions, read_all(ask(pipeline, questions, Request())))
    print(found, flush=True)
    found_in_others = score(others, read_all(ask(pipeline, others, Request())))
    print(found_in_others, flush=True)
    some = questions[:: chosen.every]
    write_report(
        REPORT,
        Report(
            date=datetime.date.today(),
            machine=chosen.machine,
            samples=chosen.samples,
            scores=found,
            others=found_in_others,
            ceiling=ceiling,
            control=control,
            sizes=measure_sizes(pipeline, some),
            guidance=measure_guidance(pipeline, some),
            negatives=measure_negatives(pipeline, chosen.each // 2),
            seconds=measure_seconds(pipeline),
        ),
    )
    draw_sheets(pipeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())

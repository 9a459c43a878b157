"""The evaluation as a page: one table, and what was measured beside it."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from training.pinhole.generate import Request

GOALS: dict[str, tuple[str, str]] = {
    "setting": ("90 %", "98 %"),
    "colour": ("80 %", "97 %"),
    "shape": ("60 %", "95 %"),
    "thing": ("50 %", "90 %"),
    "both colours": ("60 %", "95 %"),
    "relation": ("40 %", "90 %"),
    "riding": ("", ""),
    "count": ("70 %", "90 %"),
}
"""What a first version must reach, and what we want."""


@dataclass(frozen=True, slots=True)
class Report:
    date: datetime.date
    machine: str
    samples: str
    scores: dict[str, tuple[float, int]]
    others: dict[str, tuple[float, int]]
    ceiling: dict[str, float]
    control: dict[str, float]
    sizes: dict[str, dict[str, float]]
    guidance: dict[float, float]
    negatives: dict[str, tuple[float, float]]
    seconds: float


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def write_report(path: Path, report: Report) -> None:
    path.write_text(
        "\n".join([*_head(report), *_scores(report), *_sizes(report), *_effects(report)]) + "\n", encoding="utf-8"
    )


def _head(report: Report) -> list[str]:
    return [
        "# What pinhole can do",
        "",
        f"Written by `python -m training.pinhole.evaluate` on {report.date}, on {report.machine}. "
        f"The denoiser had seen {report.samples} samples.",
        "",
        "The prompts are combinations that training never shows (riding excepted), one seed each, 512 x 512,"
        f" 20 steps of Euler, guidance {Request().guidance:g}. The judge draws what its grammar allows until the"
        " picture is explained, and does not know the prompt; *ceiling* is its score on true renders of the same"
        " scenes, *shuffled* on the true render of another prompt of the same kind. Training and the making of the"
        " judge were watched by the questions of the first column; the *others* were asked at the end only.",
        "",
    ]


def _scores(report: Report) -> list[str]:
    rows = ["| measure | right | of others | questions | ceiling | shuffled | floor | goal |", "|---" * 8 + "|"]
    for measure, (share, count) in report.scores.items():
        floor, goal = GOALS[measure]
        other, other_count = report.others[measure]
        ceiling, control = _percent(report.ceiling[measure]), _percent(report.control[measure])
        rows.append(
            f"| {measure} | **{_percent(share)}** | {_percent(other)} | {count} and {other_count} | {ceiling} |"
            f" {control} | {floor} | {goal} |"
        )
    return [*rows, ""]


def _sizes(report: Report) -> list[str]:
    measures = list(report.scores)
    rows = [
        "## Sizes",
        "",
        "A part of the same questions at every size.",
        "",
        f"| size | {' | '.join(measures)} |",
        "|---" * (len(measures) + 1) + "|",
    ]
    for size, scores in report.sizes.items():
        shares = [_percent(scores[measure]) if measure in scores else "" for measure in measures]
        rows.append(f"| {size} | {' | '.join(shares)} |")
    return [*rows, ""]


def _effects(report: Report) -> list[str]:
    rows = [
        "## Guidance",
        "",
        "The share of all verdicts that are right, for a part of the questions.",
        "",
        "| guidance | right |",
        "|---|---|",
    ]
    rows += [f"| {guidance:g} | {_percent(share)} |" for guidance, share in report.guidance.items()]
    rows += [
        "",
        "## Negative prompts",
        "",
        "How often what the negative prompt names is seen, without it and with it.",
        "",
        "| prompt | without | with |",
        "|---|---|---|",
    ]
    rows += [
        f"| {name} | {_percent(before)} | {_percent(after)} |" for name, (before, after) in report.negatives.items()
    ]
    rows += [
        "",
        "## Speed",
        "",
        f"512 x 512, 50 steps, guidance 7.5, with plain diffusers on two threads: {report.seconds:.1f} s.",
    ]
    return rows

"""The shipped weights still score what their table says: a small, seeded part of the evaluation."""

import pytest
import torch

pytest.importorskip("scipy", reason="the judge needs the training extra")

from training.pinhole.export import SHIPPED
from training.pinhole.generate import Request, generate, load_pipeline
from training.pinhole.judge import read
from training.pinhole.scoring import draw_questions, score

SCORES = {
    "setting": 0.99,
    "colour": 0.99,
    "shape": 0.99,
    "thing": 0.95,
    "both colours": 0.99,
    "relation": 0.92,
    "count": 0.89,
}
"""From both columns of the table; with so few questions here, two answers may go wrong by bad luck."""


def test_the_weights_still_draw_what_is_asked() -> None:
    torch.set_num_threads(2)
    questions = draw_questions({"shape": 6, "thing": 6, "pair": 5, "count": 5})
    pictures = generate(load_pipeline(SHIPPED), [q.prompt for q in questions], [q.seed for q in questions], Request())
    for measure, (share, count) in score(questions, [read(picture) for picture in pictures]).items():
        assert share >= SCORES.get(measure, 0) - 2 / count, measure

"""Long prompts and weighted words: what the text encoder gets, and what travels together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safelight.catalog import PINHOLE_FOLDER
from safelight.engine.engine import Engine
from safelight.engine.events import EncodedPrompt
from safelight.engine.models.base import Reading
from safelight.engine.models.loading import load_model
from safelight.engine.models.unet import UNetModel
from safelight.engine.models.windows import MAX_WEIGHT, MAX_WINDOWS, Span, parse_weights
from safelight.runs import RunParams
from safelight.testing import NUM_TOKENS, FakeModel, colour_of

from .drawing import assign, pictures_of, run_out

LONG = "a red house on a hill under a blue sky with snow, "


@pytest.fixture(scope="module")
def pinhole() -> UNetModel:
    model = load_model(PINHOLE_FOLDER)
    assert isinstance(model, UNetModel)
    return model


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.3) cat", [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]),
        ("a (red) [cat]", [("a ", 1.0), ("red", 1.1), (" ", 1.0), ("cat", 1 / 1.1)]),
        ("((a (b:2)))", [("a ", 1.21), ("b", 2.42)]),
        (r"a \(red\) cat: 5", [("a (red) cat: 5", 1.0)]),
        ("a (red cat", [("a ", 1.0), ("red cat", 1.1)]),
        ("a) cat :1.5)", [("a) cat :1.5)", 1.0)]),
        ("(a:b:-.5)", [("a:b", -0.5)]),
        ("", []),
    ],
)
def test_brackets_weigh_what_is_in_them(text: str, spans: list[tuple[str, float]]) -> None:
    found = parse_weights(text)
    assert [each.text for each in found] == [text for text, _ in spans]
    assert [each.weight for each in found] == pytest.approx([weight for _, weight in spans])
    assert all(isinstance(each, Span) for each in found)


@pytest.mark.parametrize(
    "text", ["(a" * 200_000, "(a)" * 200_000, "(" * 200_000 + "a" + ")" * 200_000, "a:" + "9" * 200_000]
)
def test_brackets_without_end_are_read_in_one_pass_and_weigh_no_more_than_the_most(text: str) -> None:
    # Read again from each of them, these would take hours.
    found = parse_weights(text)
    assert "".join(each.text for each in found).count("a") == text.count("a")
    assert max(each.weight for each in found) <= MAX_WEIGHT


def test_numbers_without_end_weigh_the_most(pinhole: UNetModel) -> None:
    pinhole.set_reading(Reading(is_weighted=True))
    for number, expected in (("9" * 400, MAX_WEIGHT), ("-" + "9" * 400, -MAX_WEIGHT)):
        assert parse_weights(f"((red:{number}):0)") == [Span("red", 0.0)]
        assert parse_weights(f"(red:{number})") == [Span("red", expected)]
    assert pinhole.encode("((red:1" + "0" * 50 + ") house)").hidden.isfinite().all()
    pinhole.set_reading(Reading())


def test_a_text_has_no_more_windows_than_the_most_and_says_what_was_cut(pinhole: UNetModel) -> None:
    pinhole.set_reading(Reading(is_long=True))
    endless = "house " * 4000
    assert pinhole.count_windows(endless) == MAX_WINDOWS
    assert pinhole.encode(endless, num_windows=MAX_WINDOWS).cut
    pinhole.set_reading(Reading())


def test_a_prompt_of_any_brackets_keeps_its_text() -> None:
    for text in (")))(((", "[(])", r"\\", "(((:1.2)", "a" * 4000 + "(" * 500, ":" * 50 + ")" * 50):
        assert all(each.text for each in parse_weights(text))


def test_without_the_settings_a_prompt_is_cut_and_brackets_are_text(pinhole: UNetModel) -> None:
    pinhole.set_reading(Reading())
    assert pinhole.count_windows(LONG * 20) == 1
    encoded = pinhole.encode(LONG * 20)
    assert encoded.cut and encoded.hidden.shape == pinhole.conditioning_shape
    assert not torch.equal(pinhole.encode("a (red:1.5) house").hidden, pinhole.encode("a red house").hidden)


def test_a_long_prompt_is_its_windows_one_after_the_other(pinhole: UNetModel) -> None:
    length, width = pinhole.conditioning_shape
    pinhole.set_reading(Reading())
    words = " ".join(["house"] * pinhole.num_prompt_tokens)
    alone, rest, empty = (pinhole.encode(text).hidden for text in (words, "tree", ""))
    pinhole.set_reading(Reading(is_long=True))
    assert pinhole.count_windows(words) == 1 and pinhole.count_windows(words + " tree") == 2
    encoded = pinhole.encode(words + " tree", num_windows=3)
    assert encoded.cut == "" and encoded.hidden.shape == (3 * length, width)
    for place, expected in enumerate((alone, rest, empty)):
        assert torch.allclose(encoded.hidden[place * length : (place + 1) * length], expected, atol=1e-5)


def test_a_weight_changes_its_words_and_keeps_the_mean(pinhole: UNetModel) -> None:
    pinhole.set_reading(Reading(is_weighted=True))
    plain, weighed = pinhole.encode("a red house").hidden, pinhole.encode("a (red:1.5) house").hidden
    assert torch.equal(pinhole.encode("a (red:1.0) house").hidden, plain)
    ratio = (weighed / plain).median(dim=1).values
    assert ratio[2] / ratio[1] == pytest.approx(1.5, abs=1e-4), "after the start token and `a`"
    assert weighed.mean().item() == pytest.approx(plain.mean().item(), abs=1e-5)
    pinhole.set_reading(Reading())


def test_prompt_and_negative_prompt_of_different_lengths_are_drawn_together() -> None:
    model, engine = FakeModel(), Engine()
    model.set_reading(Reading(is_long=True))
    engine.load("fake@1", model)
    short = RunParams(prompt="a cat", height=64, width=64, num_inference_steps=4, guidance_scale=1.0)
    long = replace(short, prompt="word " * 3 * NUM_TOKENS)
    guided = replace(short, guidance_scale=2.0, negative_prompt="word " * 2 * NUM_TOKENS)
    for name, params in (("short", short), ("long", long), ("guided", guided)):
        engine.submit(assign(name, params))
    told = run_out(engine)
    assert [event.warnings for event in told["long"] if isinstance(event, EncodedPrompt)] == [()], "nothing is cut"
    assert (pictures_of(told["short"])[0] == colour_of("a cat")).all()
    assert (pictures_of(told["long"])[0] == colour_of(long.prompt)).all()
    assert pictures_of(told["guided"])[0].shape == (64, 64, 3)
    assert max(model.rows) == 2, "rows of different lengths do not stack"

"""The judge of pictures: what is wrong it calls wrong, what is merely drawn badly it forgives."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageFilter

pytest.importorskip("scipy", reason="the detector needs the training extra")

from training.pinhole import evaluate
from training.pinhole.drawing import Box
from training.pinhole.judge import UNNAMED, Item, Reading, read
from training.pinhole.palette import COLOURS
from training.pinhole.scenes import Family, Placed, Relation, Scene, Subject, lay_out, render
from training.pinhole.scoring import draw_questions, judge_scene
from training.pinhole.settings import paint
from training.pinhole.subjects import SUBJECTS

SIDE = 256
STILL = (0.0,) * 8
HEART, STAR, CAT = Subject("heart", "red"), Subject("star", "blue"), Subject("cat", "orange")
ONE = Scene(Family.SINGLE, "meadow", (CAT,), 1, None, STILL)
THREE = Scene(Family.COUNT, "plain", (STAR,), 3, None, STILL)
TWO = Scene(Family.PAIR, "sea", (HEART, STAR), 1, Relation.LEFT_OF, STILL)
STACK = Scene(Family.PAIR, "plain", (HEART, CAT), 1, Relation.ON, STILL)
RIDE = Scene(Family.RIDING, "mars", (Subject("astronaut", None), Subject("horse", "brown")), 1, Relation.RIDING, STILL)
SCENES = (ONE, THREE, TWO, STACK, RIDE)


def _draw(scene: Scene, placed: Sequence[Placed], horizon: float = 0.0) -> np.ndarray:
    canvas = paint(scene.setting, SIDE, SIDE, horizon)
    for one in placed:
        canvas.draw(one.parts, one.box)
    return canvas.pixels()


def _as(subject: Subject, box: Box) -> Placed:
    assert subject.colour is not None
    return Placed(subject, box, SUBJECTS[subject.name](COLOURS[subject.colour]))


def _verdicts(scene: Scene, pixels: np.ndarray) -> dict[str, bool]:
    return judge_scene(scene, read(pixels))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: str(scene.relation or scene.family))
def test_blur_noise_a_tint_and_a_moved_horizon_are_forgiven(scene: Scene) -> None:
    picture = _draw(scene, lay_out(scene, SIDE, SIDE), horizon=1.0)
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.5)), int)
    noise = np.random.default_rng(3100).integers(-12, 13, picture.shape)
    assert all(_verdicts(scene, np.clip(blurred + noise - 10, 0, 255).astype(np.uint8)).values())


@pytest.mark.parametrize("scene", [THREE, TWO, RIDE], ids=lambda scene: str(scene.relation or scene.family))
def test_a_missing_subject_is_missed(scene: Scene) -> None:
    verdicts = _verdicts(scene, _draw(scene, lay_out(scene, SIDE, SIDE)[1:]))
    assert not any(verdicts[measure] for measure in verdicts.keys() & {"count", "relation", "riding"})


def test_two_stars_and_a_heart_are_not_three_stars() -> None:
    placed = lay_out(THREE, SIDE, SIDE)
    assert _verdicts(THREE, _draw(THREE, placed))["count"]
    assert not _verdicts(THREE, _draw(THREE, [*placed[:2], _as(HEART, placed[2].box)]))["count"]


def test_a_subject_too_many_counts_even_where_no_layout_has_a_place_for_it() -> None:
    small = _as(Subject("circle", "green"), Box(0.85 * SIDE, 0.15 * SIDE, 0.11 * SIDE))
    for scene in (ONE, TWO):
        picture = _draw(scene, [*lay_out(scene, SIDE, SIDE), small])
        assert read(picture).items[-1].name == UNNAMED
        assert not all(_verdicts(scene, picture).values())


def test_half_a_subject_is_not_named() -> None:
    picture = render(ONE, SIDE, SIDE).copy()
    picture[:, : SIDE // 2] = _draw(ONE, ())[:, : SIDE // 2]
    assert [item.name for item in read(picture).items] != ["cat"]


def test_what_rides_is_told_from_what_only_stands_where_a_mount_would() -> None:
    mount, rider = lay_out(RIDE, SIDE, SIDE)
    assert not _verdicts(RIDE, _draw(RIDE, [_as(Subject("house", "brown"), mount.box), rider]))["riding"]


def test_each_of_two_must_have_its_own_colour_whatever_the_alphabet_says() -> None:
    def verdict(scene: Scene, *items: Item) -> bool:
        return judge_scene(scene, Reading("plain", items, None))["both colours"]

    sun_and_heart = Scene(Family.PAIR, "plain", (Subject("sun", None), HEART), 1, Relation.NEXT_TO, STILL)
    heart, star = Item("heart", "red", 0.3, 0.5), Item("star", "blue", 0.7, 0.5)
    assert verdict(TWO, heart, star) and verdict(TWO, star, heart)
    assert not verdict(TWO, Item("heart", "blue", 0.3, 0.5), Item("star", "red", 0.7, 0.5))
    assert verdict(sun_and_heart, Item(UNNAMED, "black", 0.3, 0.5), heart)
    assert verdict(sun_and_heart, Item(UNNAMED, "yellow", 0.3, 0.5), heart)
    assert not verdict(sun_and_heart, Item("sun", None, 0.3, 0.5), Item("heart", "pink", 0.7, 0.5))


def test_evaluation_refuses_a_judge_that_does_not_see_true_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = draw_questions({"shape": 2, "count": 2}, seed=3100)
    ceiling, _ = evaluate.check_judge(questions, SIDE, SIDE)
    assert set(ceiling.values()) == {1.0}
    monkeypatch.setattr(evaluate, "read_all", lambda pictures: [Reading("plain", (), None)] * len(pictures))
    with pytest.raises(evaluate.JudgeError, match=r"below 0\.95"):
        evaluate.check_judge(questions, SIDE, SIDE)

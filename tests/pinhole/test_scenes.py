"""Scenes, captions and latents: the same for the same seed, and as they are said to be."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the detector needs the training extra")

from training.pinhole.captions import draw_caption, plain_caption
from training.pinhole.judge import read
from training.pinhole.latents import LATENT_CHANNELS, latent_of, subject_codes
from training.pinhole.scenes import draw_scene, render
from training.pinhole.scoring import draw_questions, score, shuffled


def test_scenes_and_captions_are_the_same_for_the_same_seed() -> None:
    def draw(seed: int) -> list[tuple[object, str]]:
        random = np.random.default_rng(seed)
        return [(scene, draw_caption(scene, random)) for scene in (draw_scene(random) for _ in range(50))]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_a_picture_is_the_same_every_time_it_is_drawn() -> None:
    scene = draw_scene(np.random.default_rng(1))
    assert np.array_equal(render(scene, 256, 384), render(scene, 256, 384))


def test_held_out_scenes_are_never_drawn_for_training() -> None:
    random = np.random.default_rng(0)
    assert not any(draw_scene(random).is_held_out for _ in range(500))
    assert all(draw_scene(random, is_held_out=True).is_held_out for _ in range(100))


def test_a_plain_caption_names_everything_in_the_scene() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        scene = draw_scene(random)
        caption = plain_caption(scene)
        assert all(subject.name in caption for subject in scene.subjects)
        assert all(subject.colour in caption for subject in scene.subjects if subject.colour)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 768), (768, 512)])
def test_a_latent_has_one_cell_for_every_32_pixels(width: int, height: int) -> None:
    latent = latent_of(draw_scene(np.random.default_rng(3)), width, height)
    assert latent.shape == (LATENT_CHANNELS, height // 32, width // 32)
    assert np.isfinite(latent).all()


def test_no_two_subjects_share_a_code() -> None:
    codes = list(subject_codes().values())
    distances = [np.abs(a - b).sum() for k, a in enumerate(codes) for b in codes[:k]]
    assert min(distances) >= 4


def test_the_detector_sees_true_renders_and_is_not_fooled_by_others() -> None:
    questions = draw_questions({"shape": 4, "thing": 4, "pair": 5, "count": 4})
    readings = [read(render(question.scene, 256, 256)) for question in questions]
    assert all(share >= 0.85 for share, _ in score(questions, readings).values())
    assert all(share <= 0.5 for share, _ in score(questions, shuffled(questions, readings)).values())

"""Which prompts are asked, and what counts as right. Pictures come from elsewhere: drawn, rendered, or shuffled."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from training.pinhole.captions import plain_caption
from training.pinhole.judge import UNNAMED, Item, Reading
from training.pinhole.scenes import Family, Relation, Scene, Subject, draw_scene
from training.pinhole.subjects import SHAPES

SEED, OTHER_SEED = 2024, 4003
"""The questions that training and the judge were watched by, and others that nobody looked at before. Whoever looks
takes another number for those."""

MEASURES = ("setting", "colour", "shape", "thing", "both colours", "relation", "riding", "count")


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out scene, how it is asked for, and with which seed."""

    scene: Scene
    prompt: str
    seed: int


def _kind(scene: Scene) -> str:
    if scene.family is Family.SINGLE:
        return "shape" if scene.subjects[0].name in SHAPES else "thing"
    return str(scene.family)


def draw_questions(counts: dict[str, int], seed: int = SEED) -> list[Question]:
    """So many held-out scenes of each kind: shape, thing, pair, count. Always the same ones, in the same order."""
    random = np.random.default_rng(seed)
    left = dict(counts)
    questions: list[Question] = []
    while any(left.values()):
        scene = draw_scene(random, is_held_out=True)
        if left.get(_kind(scene), 0) > 0:
            left[_kind(scene)] -= 1
            questions.append(Question(scene, plain_caption(scene), 10_000 * (seed - SEED) + len(questions)))
    return questions


def riding_questions(count: int, seed: int = SEED) -> list[Question]:
    """Riders on horses and fish; this family is no secret to the model, since the example request's
    prompt is one of it."""
    random = np.random.default_rng(seed)
    settings, riders, mounts = (
        ("mars", "plain", "snow", "meadow"),
        ("astronaut", "cat"),
        (("horse", "brown"), ("fish", "orange")),
    )
    questions = []
    for k in range(count):
        rider = riders[k % 2]
        subjects = (Subject(rider, "orange" if rider == "cat" else None), Subject(*mounts[k // 2 % 2]))
        jitter = tuple(float(j) for j in random.uniform(-1, 1, size=8))
        scene = Scene(Family.RIDING, settings[k // 4 % 4], subjects, 1, Relation.RIDING, jitter)
        questions.append(Question(scene, plain_caption(scene), 10_000 * (seed - SEED) + 1000 + k))
    return questions


def _stands(relation: Relation, first: Item, second: Item, joint: Relation | None) -> bool:
    across, down = second.x - first.x, second.y - first.y
    match relation:
        case Relation.RIDING:
            return joint is relation
        case Relation.ON:
            return joint is relation or (joint is None and down > abs(across))
        case Relation.NEXT_TO:
            return abs(across) > abs(down)
        case Relation.LEFT_OF:
            return across > abs(down)
        case Relation.RIGHT_OF:
            return -across > abs(down)
        case Relation.ABOVE:
            return joint is None and down > abs(across)
        case Relation.BELOW:
            return joint is None and -down > abs(across)


def _relation_is_right(scene: Scene, reading: Reading) -> bool:
    """Both subjects are there, nothing else is, and they stand as was asked."""
    assert scene.relation is not None
    named = {item.name: item for item in reading.items}
    first, second = (subject.name for subject in scene.subjects)
    if len(reading.items) != 2 or set(named) != {first, second}:
        return False
    return _stands(scene.relation, named[first], named[second], reading.joint)


def _could_be(subject: Subject, other: Subject, item: Item) -> bool:
    """In the subject's colour, and not clearly the other subject."""
    return item.name != other.name and (subject.colour is None or item.colour == subject.colour)


def _both_colours_are_right(scene: Scene, reading: Reading) -> bool:
    """Of two things seen, each has the colour of the subject it is; what a thing is need not be seen."""
    first, second = scene.subjects
    return len(reading.items) >= 2 and any(
        _could_be(first, second, one) and _could_be(second, first, other)
        for one, other in permutations(reading.items[:2])
    )


def _count_is_right(scene: Scene, reading: Reading) -> bool:
    """So many things are seen, and none of them is clearly something else."""
    wanted = {scene.subjects[0].name, UNNAMED}
    return len(reading.items) == scene.count and all(item.name in wanted for item in reading.items)


def judge_scene(scene: Scene, reading: Reading) -> dict[str, bool]:
    """Every measure this scene can say something about."""
    right = {"setting": reading.setting == scene.setting}
    first = reading.items[0] if reading.items else None
    if scene.family is Family.SINGLE:
        subject = scene.subjects[0]
        right[_kind(scene)] = first is not None and len(reading.items) == 1 and first.name == subject.name
        if subject.colour is not None:
            right["colour"] = first is not None and first.colour == subject.colour
    elif scene.family is Family.COUNT:
        right["count"] = _count_is_right(scene, reading)
    elif scene.relation is Relation.RIDING:
        right["riding"] = _relation_is_right(scene, reading)
    elif scene.family is Family.PAIR:
        right["relation"] = _relation_is_right(scene, reading)
        if any(subject.colour for subject in scene.subjects):
            right["both colours"] = _both_colours_are_right(scene, reading)
    return right


def score(questions: Sequence[Question], readings: Sequence[Reading]) -> dict[str, tuple[float, int]]:
    """The share of right answers and the number of questions for each measure."""
    verdicts: dict[str, list[bool]] = {measure: [] for measure in MEASURES}
    for question, reading in zip(questions, readings, strict=True):
        for measure, is_right in judge_scene(question.scene, reading).items():
            verdicts[measure].append(is_right)
    return {measure: (float(np.mean(rights)), len(rights)) for measure, rights in verdicts.items() if rights}


def shuffled(questions: Sequence[Question], readings: Sequence[Reading]) -> list[Reading]:
    """Every question answered with the picture of another of its kind: what guessing would score."""
    kinds: dict[str, list[int]] = {}
    for k, question in enumerate(questions):
        kinds.setdefault(_kind(question.scene), []).append(k)
    answers = list(readings)
    for places in kinds.values():
        for place, other in zip(places, places[1:] + places[:1], strict=True):
            answers[place] = readings[other]
    return answers

"""What a scene is, how one is drawn by lot, and how it becomes a picture. Captions live in captions."""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from training.pinhole.drawing import Box, Part
from training.pinhole.palette import COLOURS
from training.pinhole.settings import PLACES, PLAIN, paint
from training.pinhole.subjects import OWN_COLOURS, SHAPES, SUBJECTS, USUAL_COLOURS, seated_astronaut

Choice = TypeVar("Choice")

CELL = 32
"""Pixels of a picture under one cell of the layout: the autoencoder's factor."""

HELD_OUT_SHARE = 10
"""One in so many combinations is never trained on."""

RIDERS = ("astronaut", "cat", "star", "heart")
MOUNTS = {"horse": (0.06, -0.2), "fish": (-0.1, -0.42), "boat": (0.1, 0.36)}
"""What can be ridden, and where its rider sits, in the mount's own box."""
ALOFT = ("sun", "moon", "rocket", "star", "heart")


class Family(StrEnum):
    EMPTY = "empty"
    SINGLE = "single"
    COUNT = "count"
    PAIR = "pair"
    RIDING = "riding"


class Relation(StrEnum):
    NEXT_TO = "next to"
    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    ABOVE = "above"
    BELOW = "below"
    ON = "on"
    RIDING = "riding"


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    colour: str | None
    """None for things that have one colour only."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a picture is made of but its size: the same scene can be drawn square, upright or wide."""

    family: Family
    setting: str
    subjects: tuple[Subject, ...]
    count: int
    relation: Relation | None
    jitter: tuple[float, ...]
    """Eight numbers from -1 to 1."""

    @property
    def key(self) -> str:
        """What is held out or not: subjects with colours, count or relation, and for singles the setting."""
        names = "+".join(sorted(f"{s.colour}-{s.name}" for s in self.subjects))
        detail = self.setting if self.family is Family.SINGLE else str(self.count)
        return f"{self.family}:{names}:{detail}"

    @property
    def is_held_out(self) -> bool:
        if self.family in (Family.EMPTY, Family.RIDING):
            return False
        return zlib.crc32(self.key.encode()) % HELD_OUT_SHARE == 0


FAMILY_SHARES = {Family.EMPTY: 0.04, Family.SINGLE: 0.36, Family.COUNT: 0.15, Family.PAIR: 0.28, Family.RIDING: 0.17}
PAIR_RELATIONS = (Relation.NEXT_TO, Relation.LEFT_OF, Relation.RIGHT_OF, Relation.ABOVE, Relation.BELOW, Relation.ON)


def _choose(rng: np.random.Generator, options: tuple[Choice, ...]) -> Choice:
    return options[int(rng.integers(len(options)))]


def _draw_subject(rng: np.random.Generator, names: tuple[str, ...]) -> Subject:
    name = _choose(rng, names)
    if name in OWN_COLOURS:
        return Subject(name, None)
    usual = USUAL_COLOURS.get(name)
    if usual is not None and rng.random() < 0.4:
        return Subject(name, usual)
    return Subject(name, _choose(rng, tuple(COLOURS)))


def _draw_setting(rng: np.random.Generator) -> str:
    share = rng.random()
    if share < 0.4:
        return "plain"
    return _choose(rng, tuple(PLAIN)[1:]) if share < 0.5 else _choose(rng, tuple(PLACES))


def _draw_any(rng: np.random.Generator) -> Scene:
    family = Family(str(rng.choice(list(FAMILY_SHARES), p=list(FAMILY_SHARES.values()))))
    setting, count, relation = _draw_setting(rng), 1, None
    everything, shapes = tuple(SUBJECTS), tuple(SHAPES)
    subjects: tuple[Subject, ...]
    if family is Family.EMPTY:
        subjects, setting = (), _choose(rng, tuple(PLACES))
    elif family is Family.RIDING:
        relation = Relation.RIDING
        rider = _draw_subject(rng, ("astronaut",) if rng.random() < 0.6 else RIDERS)
        mount = _draw_subject(rng, ("horse",) if rng.random() < 0.6 else tuple(MOUNTS))
        subjects = (rider, mount)
        setting = "mars" if rng.random() < 0.25 else setting
    elif family is Family.PAIR:
        relation = _choose(rng, PAIR_RELATIONS)
        first = _draw_subject(rng, shapes if rng.random() < 0.5 else everything)
        others = tuple(n for n in (shapes if rng.random() < 0.5 else everything) if n != first.name)
        subjects = (first, _draw_subject(rng, others))
    else:
        subjects = (_draw_subject(rng, shapes if rng.random() < 0.35 else everything),)
        count = int(rng.integers(2, 5)) if family is Family.COUNT else 1
    jitter = tuple(float(j) for j in rng.uniform(-1, 1, size=8))
    return Scene(family, setting, subjects, count, relation, jitter)


def draw_scene(rng: np.random.Generator, *, is_held_out: bool = False) -> Scene:
    """A scene by lot: one that may be trained on, or one that never is."""
    while True:
        scene = _draw_any(rng)
        if scene.is_held_out is is_held_out:
            return scene


@dataclass(frozen=True, slots=True)
class Placed:
    """A subject at its place in one picture."""

    subject: Subject
    box: Box
    parts: list[Part]


def _parts(subject: Subject, *, is_seated: bool = False) -> list[Part]:
    colour = OWN_COLOURS[subject.name] if subject.colour is None else COLOURS[subject.colour]
    if is_seated and subject.name == "astronaut":
        return seated_astronaut(colour)
    return SUBJECTS[subject.name](colour)


def _slots(scene: Scene, width: int, height: int) -> list[tuple[float, float, float]]:
    """Centre (shares of width and height) and half size (share of the short side) of every subject."""
    aspect = width / height
    wide, upright = aspect > 1.2, aspect < 0.84
    if scene.family is Family.SINGLE:
        return [(0.5, _single_height(scene), 0.36 if upright else 0.33)]
    if scene.family is Family.COUNT:
        return _count_slots(scene.count, wide=wide, upright=upright)
    half = 0.235 if upright else 0.215
    side = 0.25 if wide else 0.27
    level = 0.55 if scene.setting in PLAIN else 0.62
    match scene.relation:
        case Relation.NEXT_TO | Relation.LEFT_OF:
            return [(side, level, half), (1 - side, level, half)]
        case Relation.RIGHT_OF:
            return [(1 - side, level, half), (side, level, half)]
        case Relation.ABOVE:
            return [(0.5, 0.26, half), (0.5, 0.74, half)]
        case Relation.BELOW:
            return [(0.5, 0.74, half), (0.5, 0.26, half)]
        case _:
            return []


def _single_height(scene: Scene) -> float:
    if scene.setting in PLAIN or scene.setting == "space":
        return 0.5
    return 0.4 if scene.subjects[0].name in ALOFT else 0.58


def _count_slots(count: int, *, wide: bool, upright: bool) -> list[tuple[float, float, float]]:
    if count == 2:
        return [(0.5, 0.28, 0.26), (0.5, 0.72, 0.26)] if upright else [(0.27, 0.5, 0.2), (0.73, 0.5, 0.2)]
    if count == 4:
        return [(x, y, 0.18 if wide else 0.19) for y in (0.28, 0.72) for x in (0.28, 0.72)]
    if wide:
        return [(x, 0.5, 0.2) for x in (0.19, 0.5, 0.81)]
    if upright:
        return [(0.5, y, 0.2) for y in (0.18, 0.5, 0.82)]
    return [(0.5, 0.26, 0.185), (0.27, 0.73, 0.185), (0.73, 0.73, 0.185)]


def lay_out(scene: Scene, width: int, height: int) -> list[Placed]:
    """Where everything stands at this size, in the order of painting."""
    short = min(width, height)
    if scene.family is Family.EMPTY:
        return []
    if scene.relation is Relation.RIDING:
        return _lay_out_riding(scene, width, height)
    if scene.relation is Relation.ON:
        return _lay_out_stack(scene, width, height)
    subjects = scene.subjects * scene.count
    placed = []
    for k, (subject, (x, y, half)) in enumerate(zip(subjects, _slots(scene, width, height), strict=True)):
        dx, dy = scene.jitter[(2 * k) % 8], scene.jitter[(2 * k + 1) % 8]
        box = Box(x * width + 0.02 * dx * short, y * height + 0.02 * dy * short, half * short * _growth(scene))
        placed.append(Placed(subject, box, _parts(subject)))
    return placed


def _growth(scene: Scene) -> float:
    return 1 + 0.05 * scene.jitter[7]


def _lay_out_riding(scene: Scene, width: int, height: int) -> list[Placed]:
    short = min(width, height)
    rider, mount = scene.subjects
    half = (0.4 if height > width else 0.31) * short * _growth(scene)
    x = width / 2 + 0.02 * scene.jitter[0] * short
    y = height * (0.64 if height > width else 0.68) + 0.015 * scene.jitter[1] * short
    seat_x, seat_y = MOUNTS[mount.name]
    rider_half = half * 0.66
    sinks = 0.5 if rider.name == "astronaut" else 0.82
    seat = Box(x + seat_x * half, y + seat_y * half - sinks * rider_half, rider_half)
    return [Placed(mount, Box(x, y, half), _parts(mount)), Placed(rider, seat, _parts(rider, is_seated=True))]


def _lay_out_stack(scene: Scene, width: int, height: int) -> list[Placed]:
    """The first subject rests on the second: their contours touch."""
    short = min(width, height)
    upper, lower = scene.subjects
    half = (0.26 if height > width else 0.215) * short * _growth(scene)
    x = width / 2 + 0.02 * scene.jitter[0] * short
    lower_parts, upper_parts = _parts(lower), _parts(upper)
    top = min(y for part in lower_parts for _, y in part.points)
    bottom = max(y for part in upper_parts for _, y in part.points)
    lower_y = height * 0.7 + 0.015 * scene.jitter[1] * short
    upper_y = lower_y + (top - bottom + 0.06) * half
    return [Placed(lower, Box(x, lower_y, half), lower_parts), Placed(upper, Box(x, upper_y, half), upper_parts)]


def render(scene: Scene, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]."""
    canvas = paint(scene.setting, width, height, scene.jitter[6])
    for placed in lay_out(scene, width, height):
        canvas.draw(placed.parts, placed.box)
    return canvas.pixels()


def cover(placed: list[Placed], width: int, height: int, *, scale: int = 8) -> np.ndarray:
    """uint8 [height / scale, width / scale]: which subject (counted from 1) covers each small square, 0 for none."""
    image = Image.new("L", (width // scale, height // scale), 0)
    draw = ImageDraw.Draw(image)
    for k, one in enumerate(placed, start=1):
        for part in one.parts:
            draw.polygon(
                [
                    ((one.box.x + x * one.box.half) / scale, (one.box.y + y * one.box.half) / scale)
                    for x, y in part.points
                ],
                fill=k,
            )
    return np.asarray(image)


def cells(scene: Scene, width: int, height: int) -> tuple[np.ndarray, list[Placed]]:
    """int [height / 32, width / 32]: which subject (counted from 1) has most of each cell, if any has a fifth of it."""
    placed = lay_out(scene, width, height)
    rows, columns, per_cell = height // CELL, width // CELL, (CELL // 8) ** 2
    small = cover(placed, width, height).reshape(rows, CELL // 8, columns, CELL // 8)
    small = small.transpose(0, 2, 1, 3).reshape(rows, columns, per_cell)
    owner = np.zeros((rows, columns), np.int64)
    best = np.full((rows, columns), per_cell / 5)
    for k in range(1, len(placed) + 1):
        share = (small == k).sum(-1)
        owner[share > best] = k
        best = np.maximum(best, share)
    return owner, placed

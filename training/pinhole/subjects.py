"""How each subject is drawn, as parts in a box from -1 to 1. Where it stands is decided in scenes."""

import math
from collections.abc import Callable

from training.pinhole.drawing import Part, Point, ellipse, limb, rectangle
from training.pinhole.palette import COLOURS, GREY, OUTLINE, RGB, blend, darken

WHITE, YELLOW, BROWN = COLOURS["white"], COLOURS["yellow"], COLOURS["brown"]
SUIT: RGB = (236, 238, 244)
VISOR: RGB = (56, 78, 128)
MOONLIGHT: RGB = (250, 236, 170)

Drawing = Callable[[RGB], list[Part]]


def circle(colour: RGB) -> list[Part]:
    return [Part(ellipse(0, 0, 0.92), colour)]


def square(colour: RGB) -> list[Part]:
    return [Part(rectangle(-0.82, -0.82, 0.82, 0.82), colour)]


def triangle(colour: RGB) -> list[Part]:
    return [Part([(0, -0.9), (0.98, 0.8), (-0.98, 0.8)], colour)]


def star(colour: RGB) -> list[Part]:
    points = []
    for k in range(10):
        angle, radius = math.pi * (k / 5 - 0.5), 1.0 if k % 2 == 0 else 0.44
        points.append((radius * math.cos(angle), radius * math.sin(angle) + 0.06))
    return [Part(points, colour)]


def heart(colour: RGB) -> list[Part]:
    points = []
    for k in range(48):
        t = 2 * math.pi * k / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 16))
    return [Part(points, colour)]


def house(colour: RGB) -> list[Part]:
    glass = (190, 224, 244)
    return [
        Part(rectangle(0.36, -0.85, 0.6, -0.2), darken(GREY)),
        Part(rectangle(-0.74, -0.12, 0.74, 0.9), colour),
        Part([(-0.98, -0.08), (0, -0.92), (0.98, -0.08)], (98, 66, 84)),
        Part(rectangle(-0.2, 0.3, 0.2, 0.9), (110, 70, 50)),
        Part(rectangle(-0.58, 0.14, -0.34, 0.44), glass),
        Part(rectangle(0.34, 0.14, 0.58, 0.44), glass),
    ]


def tree(colour: RGB) -> list[Part]:
    return [
        Part([(-0.14, 0), (0.14, 0), (0.2, 0.95), (-0.2, 0.95)], (120, 78, 46)),
        Part(ellipse(-0.42, 0.02, 0.42), colour),
        Part(ellipse(0.42, 0.02, 0.42), colour),
        Part(ellipse(0, -0.42, 0.54), colour),
        Part(ellipse(0, -0.02, 0.4), colour, is_outlined=False),
    ]


def flower(colour: RGB) -> list[Part]:
    green = (60, 150, 70)
    parts = [
        Part(limb((0, 0), (0, 0.92), 0.055), green),
        Part([(0, 0.8), (0.16, 0.5), (0.52, 0.4), (0.38, 0.68)], green),
        Part([(0, 0.9), (-0.16, 0.6), (-0.52, 0.5), (-0.38, 0.78)], green),
    ]
    for k in range(6):
        angle = math.pi * k / 3 + math.pi / 6
        parts.append(Part(ellipse(0.36 * math.cos(angle), -0.34 + 0.36 * math.sin(angle), 0.26), colour))
    return [*parts, Part(ellipse(0, -0.34, 0.22), BROWN if colour == YELLOW else YELLOW)]


def sun(colour: RGB) -> list[Part]:
    parts = []
    for k in range(10):
        angle = 2 * math.pi * k / 10
        tip = (1.0 * math.cos(angle), 1.0 * math.sin(angle))
        left = (0.62 * math.cos(angle - 0.2), 0.62 * math.sin(angle - 0.2))
        right = (0.62 * math.cos(angle + 0.2), 0.62 * math.sin(angle + 0.2))
        parts.append(Part([tip, left, right], COLOURS["orange"]))
    return [*parts, Part(ellipse(0, 0, 0.56), colour)]


def moon(colour: RGB) -> list[Part]:
    """A disc with a smaller disc cut out; the arcs meet where the two circles cross."""
    radius, bite, x, y = 0.9, 0.68, 0.36, -0.26
    distance, towards = math.hypot(x, y), math.atan2(y, x)
    outer = math.acos((radius**2 - bite**2 + distance**2) / (2 * radius * distance))
    inner = math.acos((radius * math.cos(outer) - distance) / bite)
    rim = _arc(0, 0, radius, towards + outer, towards + 2 * math.pi - outer)
    hollow = _arc(x, y, bite, towards - inner, towards + inner - 2 * math.pi)
    return [Part([*rim, *hollow], colour)]


def _arc(x: float, y: float, radius: float, start: float, end: float, count: int = 28) -> list[Point]:
    angles = (start + (end - start) * k / (count - 1) for k in range(count))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def mountain(colour: RGB) -> list[Part]:
    snow = (248, 250, 252)
    return [
        Part([(0.1, 0.85), (0.52, -0.25), (1.0, 0.85)], darken(colour, 0.15)),
        Part([(-1.0, 0.85), (-0.2, -0.9), (0.62, 0.85)], colour),
        Part([(-0.2, -0.9), (-0.48, -0.29), (-0.28, -0.42), (-0.16, -0.26), (0.0, -0.42), (0.085, -0.29)], snow),
    ]


def boat(colour: RGB) -> list[Part]:
    return [
        Part(rectangle(-0.07, -0.9, 0.03, 0.4), BROWN),
        Part([(0.06, -0.86), (0.8, 0.22), (0.06, 0.22)], WHITE),
        Part([(-0.12, -0.6), (-0.12, 0.22), (-0.62, 0.22)], (228, 232, 238)),
        Part([(-0.98, 0.34), (0.98, 0.34), (0.62, 0.86), (-0.62, 0.86)], colour),
    ]


def fish(colour: RGB) -> list[Part]:
    fin = darken(colour, 0.22)
    return [
        Part([(0.42, 0), (0.98, -0.5), (0.86, 0), (0.98, 0.5)], fin),
        Part([(-0.3, -0.36), (0.08, -0.76), (0.34, -0.3)], fin),
        Part(ellipse(-0.2, 0, 0.76, 0.48), colour),
        Part([(-0.1, 0.04), (0.22, -0.1), (0.22, 0.24)], fin, is_outlined=False),
        Part(ellipse(-0.58, -0.12, 0.13), WHITE, is_outlined=False),
        Part(ellipse(-0.6, -0.12, 0.07), OUTLINE, is_outlined=False),
    ]


def cat(colour: RGB) -> list[Part]:
    eye = WHITE if colour == COLOURS["black"] else OUTLINE
    belly = blend(colour, (255, 255, 255), 0.4)
    return [
        Part(limb((0.4, 0.74), (0.78, 0.52), 0.1), colour),
        Part(limb((0.78, 0.52), (0.8, 0.14), 0.1), colour),
        Part(ellipse(0, 0.48, 0.48, 0.46), colour),
        Part([(-0.52, -0.3), (-0.5, -0.95), (-0.08, -0.62)], colour),
        Part([(0.52, -0.3), (0.5, -0.95), (0.08, -0.62)], colour),
        Part(ellipse(0, -0.26, 0.56, 0.44), colour),
        Part(ellipse(0, 0.58, 0.26, 0.3), belly, is_outlined=False),
        Part(ellipse(-0.22, -0.3, 0.085, 0.11), eye, is_outlined=False),
        Part(ellipse(0.22, -0.3, 0.085, 0.11), eye, is_outlined=False),
        Part([(-0.09, -0.14), (0.09, -0.14), (0, -0.03)], (240, 120, 140), is_outlined=False),
    ]


def horse(colour: RGB) -> list[Part]:
    mane = darken(colour, 0.45) if colour != COLOURS["black"] else GREY
    legs = [
        limb((x, 0.25), (x + lean, 0.86), 0.095)
        for x, lean in ((-0.42, -0.04), (-0.2, 0.04), (0.36, -0.04), (0.58, 0.04))
    ]
    eye = WHITE if colour == COLOURS["black"] else OUTLINE
    return [
        Part([(0.62, -0.08), (0.92, 0.02), (0.98, 0.52), (0.8, 0.48), (0.72, 0.2)], mane),
        *[Part(leg, colour) for leg in legs],
        Part(ellipse(0.08, 0.1, 0.64, 0.33), colour),
        Part([(-0.56, 0.2), (-0.14, -0.12), (-0.4, -0.78), (-0.72, -0.66)], colour),
        Part([(-0.46, -0.98), (-0.36, -0.7), (-0.58, -0.72)], colour),
        Part([(-0.42, -0.82), (-0.7, -0.8), (-1.0, -0.46), (-0.9, -0.3), (-0.6, -0.42)], colour),
        Part([(-0.4, -0.84), (-0.2, -0.6), (-0.04, -0.14), (-0.2, -0.14), (-0.42, -0.56)], mane),
        Part(ellipse(-0.62, -0.63, 0.055), eye, is_outlined=False),
    ]


def astronaut(colour: RGB) -> list[Part]:
    return [
        Part(rectangle(-0.44, -0.2, 0.44, 0.36), GREY),
        Part(limb((-0.18, 0.4), (-0.26, 0.86), 0.14), colour),
        Part(limb((0.18, 0.4), (0.26, 0.86), 0.14), colour),
        Part(limb((-0.3, -0.06), (-0.66, 0.3), 0.13), colour),
        Part(limb((0.3, -0.06), (0.66, -0.36), 0.13), colour),
        Part(ellipse(0, 0.16, 0.38, 0.42), colour),
        Part(ellipse(0, -0.5, 0.46, 0.44), colour),
        Part(ellipse(0, -0.48, 0.34, 0.28), VISOR),
        Part(ellipse(-0.13, -0.56, 0.08, 0.06), WHITE, is_outlined=False),
        Part(rectangle(-0.16, 0.08, 0.16, 0.28), COLOURS["red"], is_outlined=False),
    ]


def seated_astronaut(colour: RGB) -> list[Part]:
    """Looking left, hands forward, one leg over the mount's flank."""
    return [
        Part(rectangle(0.12, -0.2, 0.56, 0.44), GREY),
        Part(limb((0.04, 0.42), (-0.18, 0.72), 0.16), colour),
        Part(limb((-0.18, 0.72), (-0.14, 1.06), 0.14), colour),
        Part(ellipse(0.04, 0.16, 0.34, 0.42), colour),
        Part(limb((-0.02, 0.0), (-0.62, 0.16), 0.12), colour),
        Part(ellipse(0, -0.5, 0.46, 0.44), colour),
        Part(ellipse(-0.14, -0.48, 0.3, 0.28), VISOR),
        Part(ellipse(-0.26, -0.56, 0.08, 0.06), WHITE, is_outlined=False),
    ]


def rocket(colour: RGB) -> list[Part]:
    hull: list[Point] = [
        (0, -0.98),
        (0.26, -0.6),
        (0.34, -0.1),
        (0.28, 0.5),
        (-0.28, 0.5),
        (-0.34, -0.1),
        (-0.26, -0.6),
    ]
    nose: list[Point] = [(0, -0.98), (0.26, -0.6), (-0.26, -0.6)]
    trim = COLOURS["red"] if colour != COLOURS["red"] else COLOURS["blue"]
    return [
        Part([(-0.2, 0.5), (0.2, 0.5), (0.12, 0.74), (0, 0.98), (-0.12, 0.74)], COLOURS["orange"]),
        Part([(-0.28, 0.1), (-0.66, 0.66), (-0.26, 0.5)], trim),
        Part([(0.28, 0.1), (0.66, 0.66), (0.26, 0.5)], trim),
        Part(hull, colour),
        Part(nose, trim),
        Part(ellipse(0, -0.22, 0.17), (150, 205, 240)),
    ]


SHAPES: dict[str, Drawing] = {"circle": circle, "square": square, "triangle": triangle, "star": star, "heart": heart}
THINGS: dict[str, Drawing] = {
    "house": house,
    "tree": tree,
    "flower": flower,
    "sun": sun,
    "moon": moon,
    "mountain": mountain,
    "boat": boat,
    "fish": fish,
    "cat": cat,
    "horse": horse,
    "astronaut": astronaut,
    "rocket": rocket,
}
SUBJECTS: dict[str, Drawing] = SHAPES | THINGS
"""Every subject by name."""

OWN_COLOURS: dict[str, RGB] = {"sun": YELLOW, "moon": MOONLIGHT, "mountain": GREY, "astronaut": SUIT}
"""Things that have one colour only."""

USUAL_COLOURS: dict[str, str] = {
    "house": "red",
    "tree": "green",
    "flower": "pink",
    "boat": "red",
    "fish": "orange",
    "cat": "orange",
    "horse": "brown",
    "rocket": "white",
}
"""What colour a thing has when nobody says."""

"""Polygons in unit coordinates and the canvas that draws them. Knows nothing of subjects or settings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from training.pinhole.palette import OUTLINE, RGB

Point = tuple[float, float]

SUPERSAMPLING = 2
STROKE_OF_SHORT_SIDE = 0.008


@dataclass(frozen=True, slots=True)
class Part:
    """One filled polygon of a subject, in a box from -1 to 1 with y pointing down."""

    points: Sequence[Point]
    fill: RGB
    is_outlined: bool = True


@dataclass(frozen=True, slots=True)
class Box:
    """Where a subject stands: centre and half the side of its box, in pixels."""

    x: float
    y: float
    half: float


def ellipse(x: float, y: float, rx: float, ry: float | None = None, *, sides: int = 36) -> list[Point]:
    ry = rx if ry is None else ry
    angles = (2 * math.pi * k / sides for k in range(sides))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def limb(start: Point, end: Point, radius: float) -> list[Point]:
    """A capsule from start to end: an arm, a leg, a trunk."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    points = []
    for (x, y), first in ((end, angle - math.pi / 2), (start, angle + math.pi / 2)):
        for k in range(9):
            a = first + math.pi * k / 8
            points.append((x + radius * math.cos(a), y + radius * math.sin(a)))
    return points


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


class Canvas:
    """A supersampled picture; coordinates are pixels of the finished picture."""

    def __init__(self, width: int, height: int, background: RGB) -> None:
        self.width, self.height = width, height
        size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._image = Image.new("RGB", size, background)
        self._draw = ImageDraw.Draw(self._image)

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)

    def fill(self, points: Iterable[Point], colour: RGB) -> None:
        self._draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=colour)

    def draw(self, parts: Sequence[Part], box: Box) -> None:
        """All outlines first, then all fills, so that a subject has one contour around its parts."""
        width = max(2, round(2 * STROKE_OF_SHORT_SIDE * self.short_side * SUPERSAMPLING))
        placed = [
            [((box.x + x * box.half) * SUPERSAMPLING, (box.y + y * box.half) * SUPERSAMPLING) for x, y in part.points]
            for part in parts
        ]
        for part, points in zip(parts, placed, strict=True):
            if part.is_outlined:
                self._draw.line([*points, points[0], points[1]], fill=OUTLINE, width=width, joint="curve")
        for part, points in zip(parts, placed, strict=True):
            self._draw.polygon(points, fill=part.fill)

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return np.asarray(self._image.reduce(SUPERSAMPLING))

"""A plain reader of pictures that never sees the prompt: setting, subjects, colours, places.

It draws what the grammar of scenes allows until the picture is explained; what no drawing explains is seen too,
unnamed. No learning anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from training.pinhole.backdrop import MARGIN, View, look
from training.pinhole.palette import COLOURS
from training.pinhole.patches import COARSE, SHORT_SIDE
from training.pinhole.scenes import Relation
from training.pinhole.synthesis import CLEAR, Found, Hypothesis, covered, explain

UNNAMED = "something"
"""What is clearly there and is none of the subjects."""

STRAY = 4
"""What is so few pixels off a subject belongs to it, a thicker roof or a longer ear."""

OPENING, SMALLEST_EXTRA, LARGEST_FLAW = 1, 0.009, 0.035
"""In shares of the picture."""


@dataclass(frozen=True, slots=True)
class Item:
    """One subject seen: what, in which colour (None where it has one colour only), and its middle in
    shares of the picture."""

    name: str
    colour: str | None
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Reading:
    setting: str
    items: tuple[Item, ...]
    joint: Relation | None
    """On or riding, when two subjects touch so; the first item is the upper one."""


def _nearest_colour(pixels: np.ndarray) -> str:
    """Which colour most of the pixels, [3, N], are nearest to."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], np.float32)
    nearest = np.abs(pixels.T[:, None] - palette).sum(-1).argmin(1)
    return names[int(np.bincount(nearest, minlength=len(names)).argmax())]


def _named(found: Found, width: int, height: int) -> Item:
    x, y = found.middle
    subject = found.variant.subject
    return Item(subject.name, subject.colour, x / width, y / height)


def _unnamed(view: View, hypothesis: Hypothesis) -> Iterator[Item]:
    """The larger connected regions that are clearly not as drawn, the largest first.

    What is wrong within a subject must be larger to count: a flaw is no subject yet.
    """
    height, width = (side - 2 * MARGIN for side in view.off.shape)
    bodies = np.zeros(view.off.shape, bool)
    for found in hypothesis.found:
        bodies |= covered(view, found, STRAY)
    labels, count = ndimage.label(ndimage.binary_opening(hypothesis.astray > CLEAR, iterations=OPENING))
    regions = [labels == k for k in range(1, count + 1)]
    for region in sorted(regions, key=lambda region: -int(region.sum())):
        outside, all_of_it = (shown.sum() / (width * height) for shown in (region & ~bodies, region))
        if outside > SMALLEST_EXTRA or all_of_it > LARGEST_FLAW:
            ys, xs = np.nonzero(region)
            colour = _nearest_colour(view.picture[:, region])
            yield Item(UNNAMED, colour, (xs.mean() - MARGIN) / width, (ys.mean() - MARGIN) / height)


def read(pixels: np.ndarray) -> Reading:
    """uint8 [H, W, 3], any size."""
    height, width = pixels.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    width, height = (COARSE * round(side * scale / COARSE) for side in (width, height))
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    setting, view = look(np.asarray(small, np.float32).transpose(2, 0, 1))
    best = explain(view, setting)
    upper_first = best.found[::-1] if best.joint else best.found
    items = (*(_named(found, width, height) for found in upper_first), *_unnamed(view, best))
    return Reading(setting, items, best.joint)

"""A plain detector that reads a picture without knowing what was asked: setting, subjects, colours, places.

What differs from the nearest empty setting is cut into blobs; each blob's outline is laid over the outlines of every
subject, and of every subject on or riding another. No learning anywhere, so it has no blind spots of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from training.pinhole.drawing import Canvas
from training.pinhole.palette import COLOURS, CREAM
from training.pinhole.scenes import RIDERS, Family, Placed, Relation, Scene, Subject, lay_out
from training.pinhole.settings import SETTINGS, paint
from training.pinhole.subjects import OWN_COLOURS, SUBJECTS

SHORT_SIDE = 192
"""Pictures are read at this size."""

GRID = 40
"""Outlines are compared on a square grid of this side."""

FOREGROUND_DISTANCE = 32
ADORNED_DISTANCE, ADORNED_THRESHOLD = 12, 110
OPENING = 2
SIMPLER = 0.04
"""A blob counts as two subjects only where their joint outline fits better by so much than any single one."""
SMALLEST_BLOB = 0.012
JITTERS = tuple(k / 4 for k in range(-4, 5))
BARE = (0.0,) * 8
READABLE_MOUNTS = ("horse", "fish")
"""A rider on a boat has the outline of the boat alone."""


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
    """On or riding, when two subjects were seen as one blob; the first item is the upper one."""


@dataclass(frozen=True, slots=True)
class Template:
    """One outline that a blob can have, and where in it each subject shows its own colour."""

    names: tuple[str, ...]
    relation: Relation | None
    outline: np.ndarray
    bodies: tuple[np.ndarray, ...]


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(first.astype(np.float32) - second.astype(np.float32)).sum(-1))


@cache
def _empty_settings(width: int, height: int) -> list[tuple[str, np.ndarray]]:
    return [(name, paint(name, width, height, jitter).pixels()) for name in SETTINGS for jitter in JITTERS]


def _rim(picture: np.ndarray) -> np.ndarray:
    """The outer tenth, where subjects seldom reach."""
    margin = SHORT_SIDE // 12
    parts = (picture[:margin], picture[-margin:], picture[:, :margin], picture[:, -margin:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def nearest_setting(picture: np.ndarray) -> tuple[str, np.ndarray]:
    """The setting whose empty picture is closest along the rim, and that picture."""
    height, width = picture.shape[:2]
    rim = _rim(picture)
    return min(_empty_settings(width, height), key=lambda empty: float(_distance(rim, _rim(empty[1])).mean()))


def _row_background(picture: np.ndarray) -> np.ndarray:
    """What each row shows at its two ends: settings change from top to bottom, hardly from left to right."""
    width = picture.shape[1]
    margin = max(2, width // 16)
    ends = np.concatenate([picture[:, 1:margin], picture[:, width - margin : width - 1]], axis=1)
    return np.median(ends, axis=1)[:, None].astype(np.float32)


def _foreground(picture: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Bool [H, W]: what is neither the empty setting nor this picture's own background, holes filled, specks removed.

    Both are asked, since a drawn setting may be a little off in colour or horizon and still be the setting. Where the
    empty setting has something of its own, a hill or a crater, only a large difference counts.
    """
    is_adorned = ndimage.binary_dilation(_distance(empty, _row_background(empty)) > ADORNED_DISTANCE, iterations=4)
    threshold = np.where(is_adorned, ADORNED_THRESHOLD, FOREGROUND_DISTANCE)
    differs = (_distance(picture, empty) > threshold) & (
        _distance(picture, _row_background(picture)) > FOREGROUND_DISTANCE
    )
    padded = np.pad(differs, 2)
    closed = ndimage.binary_erosion(
        ndimage.binary_fill_holes(ndimage.binary_dilation(padded, iterations=2)), iterations=2
    )
    return ndimage.binary_opening(closed[2:-2, 2:-2], iterations=OPENING)


def _blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions, largest first, without the tiny."""
    labels, count = ndimage.label(mask)
    found = [labels == k for k in range(1, count + 1)]
    return sorted((blob for blob in found if blob.mean() > SMALLEST_BLOB), key=lambda blob: -int(blob.sum()))


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """A square around the region: left, top, right, bottom."""
    ys, xs = np.nonzero(mask)
    half = max(xs.max() - xs.min(), ys.max() - ys.min()) / 2 + 1
    x, y = (xs.max() + xs.min() + 1) / 2, (ys.max() + ys.min() + 1) / 2
    return round(x - half), round(y - half), round(x + half), round(y + half)


def _on_grid(mask: np.ndarray, bounds: tuple[int, int, int, int]) -> np.ndarray:
    """Float [GRID * GRID]: how much of each small square the region covers."""
    image = Image.fromarray((mask * 255).astype(np.uint8)).crop(bounds)
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float32).ravel() / 255


def _draw(placed: Sequence[Placed]) -> np.ndarray:
    canvas = Canvas(SHORT_SIDE, SHORT_SIDE, CREAM)
    for one in placed:
        canvas.draw(one.parts, one.box)
    return canvas.pixels()


def _template(names: tuple[str, ...], relation: Relation | None) -> Template:
    def placed(colour: str) -> list[Placed]:
        subjects = tuple(Subject(name, None if name in OWN_COLOURS else colour) for name in names)
        family = Family.SINGLE if relation is None else Family.RIDING if relation is Relation.RIDING else Family.PAIR
        return lay_out(Scene(family, "plain", subjects, 1, relation, BARE), SHORT_SIDE, SHORT_SIDE)

    red, blue = placed("red"), placed("blue")
    picture = _draw(red)
    empty = np.full_like(picture, CREAM)
    mask = _foreground(picture, empty)
    bounds = _bounds(mask)
    bodies = []
    for name in names:
        changed = _draw([b if b.subject.name == name else r for r, b in zip(red, blue, strict=True)])
        bodies.append(_on_grid(_distance(picture, changed) > 100, bounds) > 0.9)
    return Template(names, relation, _on_grid(mask, bounds), tuple(bodies))


@cache
def templates() -> list[Template]:
    singles = [_template((name,), None) for name in SUBJECTS]
    stacks = [_template((a, b), Relation.ON) for a in SUBJECTS for b in SUBJECTS if a != b]
    rides = [_template((a, b), Relation.RIDING) for a in RIDERS for b in READABLE_MOUNTS]
    return singles + stacks + rides


@cache
def _outlines() -> tuple[np.ndarray, np.ndarray]:
    """All outlines, and what each fit is handicapped by."""
    handicaps = [0.0 if template.relation is None else SIMPLER for template in templates()]
    return np.stack([template.outline for template in templates()]), np.array(handicaps)


def _best_template(outline: np.ndarray) -> Template:
    outlines, handicaps = _outlines()
    fits = np.minimum(outlines, outline).sum(1) / np.maximum(outlines, outline).sum(1)
    return templates()[int(np.argmax(fits - handicaps))]


def _nearest_colour(pixels: np.ndarray) -> str:
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], np.float32)
    nearest = _distance(pixels[:, None], palette[None]).argmin(1)
    return names[int(np.bincount(nearest, minlength=len(names)).argmax())]


def _read_blob(picture: np.ndarray, blob: np.ndarray) -> tuple[tuple[Item, ...], Relation | None]:
    bounds = _bounds(blob)
    template = _best_template(_on_grid(blob, bounds))
    crop = Image.fromarray(picture).crop(bounds).resize((GRID, GRID), Image.Resampling.BOX)
    pixels = np.asarray(crop).reshape(-1, 3)
    ys, xs = np.nonzero(blob)
    height, width = blob.shape
    items = []
    for name, body in zip(template.names, template.bodies, strict=True):
        colour = None if name in OWN_COLOURS or not body.any() else _nearest_colour(pixels[body])
        items.append(Item(name, colour, float(xs.mean() / width), float(ys.mean() / height)))
    return tuple(items), template.relation


def read(pixels: np.ndarray) -> Reading:
    """uint8 [H, W, 3], any size."""
    height, width = pixels.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    picture = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    setting, empty = nearest_setting(picture)
    found = [_read_blob(picture, blob) for blob in _blobs(_foreground(picture, empty))]
    joint = found[0][1] if len(found) == 1 else None
    return Reading(setting, tuple(item for items, _ in found for item in items), joint)

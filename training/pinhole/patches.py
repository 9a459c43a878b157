"""Every subject in every colour as a small patch with its own transparency: what the judge lays over a picture.

Knows the grammar of scenes, never a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from training.pinhole.drawing import Box, Canvas, Part
from training.pinhole.palette import COLOURS
from training.pinhole.scenes import MOUNTS, Family, Placed, Relation, Scene, Subject, lay_out
from training.pinhole.subjects import OWN_COLOURS

SHORT_SIDE = 96
"""Pictures are read at this size."""

COARSE = 2
"""A first look goes over squares of so many pixels."""

FINER = 2
"""Patches are drawn larger by this and averaged, as the picture itself was."""

BARE = (0.0,) * 8
"""No jitter."""

STROKE_ROOM = 2


@dataclass(frozen=True, slots=True)
class Variant:
    """A subject in a colour; seated where it rides."""

    subject: Subject
    is_seated: bool = False


@dataclass(frozen=True, slots=True)
class Patch:
    """What one variant shows: float32 [3, side, side] times float32 [side, side], and the rest is see-through."""

    colours: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True, slots=True)
class Stack:
    """Patches of one size at COARSE resolution: float32 [V, 3, side, side] and [V, side, side]."""

    variants: tuple[Variant, ...]
    colours: np.ndarray
    alpha: np.ndarray


def subjects_of(names: Sequence[str]) -> tuple[Subject, ...]:
    coloured = [Subject(name, colour) for name in names if name not in OWN_COLOURS for colour in COLOURS]
    return (*coloured, *(Subject(name, None) for name in names if name in OWN_COLOURS))


@cache
def variants(names: tuple[str, ...], is_seated: bool) -> tuple[Variant, ...]:
    return tuple(Variant(subject, is_seated) for subject in subjects_of(names))


@cache
def _pair(upper: Variant, lower: Subject) -> list[Placed]:
    """The lower and the upper of two that touch."""
    if upper.is_seated and lower.name not in MOUNTS:
        lower = Subject("horse", "brown")
    family, relation = (Family.RIDING, Relation.RIDING) if upper.is_seated else (Family.PAIR, Relation.ON)
    return lay_out(Scene(family, "plain", (upper.subject, lower), 1, relation, BARE), SHORT_SIDE, SHORT_SIDE)


@cache
def offset(upper: Variant, lower: Subject) -> tuple[float, float, float]:
    """From the middle of the lower to the middle of the upper, and the upper's size, in halves of the lower's box."""
    below, above = (placed.box for placed in _pair(upper, lower))
    return (above.x - below.x) / below.half, (above.y - below.y) / below.half, above.half / below.half


@cache
def _parts(variant: Variant) -> list[Part]:
    lower = Subject("horse", "brown") if variant.subject.name != "horse" else Subject("circle", "red")
    return _pair(variant, lower)[1].parts


class _Swatch(Canvas):
    """A small canvas whose strokes are as thick as those of the whole picture."""

    @property
    def short_side(self) -> int:
        return SHORT_SIDE * FINER


def _drawn(parts: list[Part], half: float, side: int, ground: tuple[int, int, int]) -> np.ndarray:
    canvas = _Swatch(side * FINER, side * FINER, ground)
    canvas.draw(parts, Box(side * FINER / 2, side * FINER / 2, half * FINER))
    return canvas.pixels().astype(np.float32).reshape(side, FINER, side, FINER, 3).mean((1, 3))


def _side(half: float) -> int:
    """Even on both resolutions; some parts reach a little out of their box."""
    return 2 * COARSE * int(np.ceil((half * 1.08 + STROKE_ROOM) / COARSE))


@cache
def patch(variant: Variant, half: float) -> Patch:
    """`half` in pixels of a picture of SHORT_SIDE. The middle of the box is the middle of the patch."""
    side, parts = _side(half), _parts(variant)
    dark, light = (_drawn(parts, half, side, ground) for ground in ((0, 0, 0), (255, 255, 255)))
    alpha = 1 - (light - dark).mean(-1) / 255
    colours = dark / np.maximum(alpha, 0.01)[..., None]
    return Patch(colours.transpose(2, 0, 1), alpha)


def coarser(pixels: np.ndarray) -> np.ndarray:
    """Means over squares of COARSE pixels."""
    *lead, height, width = pixels.shape
    return pixels.reshape(*lead, height // COARSE, COARSE, width // COARSE, COARSE).mean((-3, -1))


@cache
def stack(names: tuple[str, ...], is_seated: bool, half: float) -> Stack:
    """These subjects in every colour at COARSE resolution."""
    chosen = variants(names, is_seated)
    patches = [patch(variant, half) for variant in chosen]
    alpha = np.stack([coarser(one.alpha) for one in patches])
    shown = np.stack([coarser(one.colours * one.alpha) for one in patches])
    return Stack(chosen, shown / np.maximum(alpha, 0.01)[:, None], alpha)

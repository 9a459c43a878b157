"""What a picture would be without subjects: the setting that explains most of it."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from training.pinhole.patches import coarser
from training.pinhole.settings import PLAIN, SETTINGS, paint

CAP = 100.0
"""No pixel is further off than this, so that no single one decides. Distances are sums over the three channels."""

JITTERS = tuple(k / 4 for k in range(-8, 9))
"""Twice as far as the grammar goes: a horizon a little off is still that horizon."""

FARTHEST_TINT = 12.0
WAVER = 2


MARGIN = 24
"""What is added on each side of a picture, so that patches may reach out of it; nothing there counts."""


@dataclass(frozen=True, slots=True)
class View:
    """A picture and its empty setting, float32 [3, H, W] with margins; how far apart they are, and 1 where it counts,
    0 in the margins, [H, W]."""

    picture: np.ndarray
    empty: np.ndarray
    off: np.ndarray
    weight: np.ndarray

    def over(self, drawn: np.ndarray) -> "View":
        """The same picture over what is drawn already."""
        return View(self.picture, drawn, distance(self.picture, drawn) * self.weight, self.weight)

    def coarser(self) -> "View":
        picture, empty, weight = (coarser(pixels) for pixels in (self.picture, self.empty, self.weight))
        return View(picture, empty, distance(picture, empty), weight)


def _framed(picture: np.ndarray, empty: np.ndarray) -> View:
    around = ((MARGIN, MARGIN), (MARGIN, MARGIN))
    picture, empty = (np.pad(pixels, ((0, 0), *around), mode="edge") for pixels in (picture, empty))
    weight = np.zeros(picture.shape[1:], np.float32)
    weight[MARGIN:-MARGIN, MARGIN:-MARGIN] = 1
    return View(picture, empty, distance(picture, empty) * weight, weight)


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Float [..., H, W] from [..., 3, H, W]: capped, from 0 for the same colour."""
    apart = first - second
    np.abs(apart, out=apart)
    total = apart[..., 0, :, :] + apart[..., 1, :, :]
    total += apart[..., 2, :, :]
    return np.minimum(total, CAP, out=total)


def loose_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As `distance`, but a pixel may have slipped by one either way: a line is no further off for being a little bent.

    Every pixel of each must be near to one around the same place in the other.
    """
    height, width = first.shape[-2:]
    padded = [np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge") for pixels in (first, second)]
    nearest = [np.full((height, width), CAP, np.float32) for _ in padded]
    for dy in range(3):
        for dx in range(3):
            for k, still in enumerate((second, first)):
                slipped = padded[k][:, dy : dy + height, dx : dx + width]
                nearest[k] = np.minimum(nearest[k], distance(slipped, still))
    return np.maximum(*nearest)


@cache
def _empties(setting: str, width: int, height: int) -> np.ndarray:
    """Float32 [jitters, 3, H, W], drawn larger so that edges are as soft as in a picture made smaller."""
    found = []
    for jitter in (0.0,) if setting in PLAIN else JITTERS:
        large = paint(setting, 2 * width, 2 * height, jitter).pixels().astype(np.float32)
        found.append(large.reshape(height, 2, width, 2, 3).mean((1, 3)).transpose(2, 0, 1))
    return np.stack(found)


def _nearest(picture: np.ndarray) -> str:
    _, height, width = picture.shape
    misses = {name: _straight_distance(picture, _empties(name, width, height)).mean((1, 2)).min() for name in SETTINGS}
    return min(misses, key=lambda name: float(misses[name]))


def _straight_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Float [..., H, W]: the way through the space of colours; a slight tint is less of it than of `distance`."""
    return np.minimum(np.sqrt(np.square(first - second).sum(-3)), CAP)


def _adapted(picture: np.ndarray, setting: str) -> np.ndarray:
    """The empty setting, wavering: every small neighbourhood at the horizon that suits it best, with the setting's
    small adornments or without."""
    _, height, width = picture.shape
    empties = _empties(setting, width, height)
    unadorned = np.broadcast_to(np.median(empties[len(empties) // 2], axis=2, keepdims=True), empties[:1].shape)
    options = np.concatenate([empties, unadorned])
    misses = ndimage.uniform_filter(distance(picture, options), size=(0, 2 * WAVER + 1, 2 * WAVER + 1))
    best = misses.argmin(0)
    return np.take_along_axis(options, best[None, None], axis=0)[0]


def look(picture: np.ndarray) -> tuple[str, View]:
    """The setting's name, and the picture over it. float32 [3, H, W]; a slight tint all over is taken out first."""
    setting = _nearest(picture)
    empty = _adapted(picture, setting)
    ground = distance(picture, empty) < CAP / 2
    if ground.mean() > 0.2:
        tint = np.median((picture - empty)[:, ground], axis=1)
        picture = picture - np.clip(tint, -FARTHEST_TINT, FARTHEST_TINT)[:, None, None].astype(np.float32)
        empty = _adapted(picture, setting)
    return setting, _framed(picture, empty)

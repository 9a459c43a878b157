"""The latent, designed instead of discovered: the picture sixteen times smaller, and what each place is part of.

One cell of 32 by 32 pixels has twenty numbers:

* three for its mean colour, nine for how its four quarters differ from it (a Haar transform of the small picture);
* six for the subjects in it: each subject has a code of six signs, averaged over the cell;
* two for where the middle of that subject lies, in halves of its size, averaged likewise.

All are averages over areas, so they are smooth, and inside a subject they are constant or linear: easy to imagine for a
small denoiser, and exact enough for the decoder to draw contours from. They come straight from the scene, so that the
denoiser need not wait for an encoder, which learns to read the same numbers from pixels.
"""

from pathlib import Path

import numpy as np

from training.pinhole.files import write_atomically
from training.pinhole.scenes import CELL, Scene, cover, draw_scene, lay_out, render
from training.pinhole.subjects import SUBJECTS

LATENT_CHANNELS = 20
SCALING_FACTOR = 2.0
"""Brings the spread of latents to 0.7: neighbouring cells say much the same, and Stable Diffusion's schedule would
leave too much of a unit spread in its last step."""

LABEL_SCALE = 8
MIDDLE_COLOUR = 0.3
DETAIL_GAIN = 2.5
OFFSET_GAIN = 2.0
SHARD_SCENES = 256
SEED = 3


def subject_codes() -> dict[str, np.ndarray]:
    """Six signs with an even number of minuses: any two differ in at least two places."""
    words = [word for word in range(64) if word.bit_count() % 2 == 0]
    signs = [np.array([1.0 if word >> bit & 1 else -1.0 for bit in range(6)], np.float32) for word in words]
    return dict(zip(SUBJECTS, signs[1:], strict=False))


def _mean_over(blocks: np.ndarray, size: int) -> np.ndarray:
    """[H, W, C] averaged over squares of this size."""
    rows, columns, channels = blocks.shape
    return blocks.reshape(rows // size, size, columns // size, size, channels).mean((1, 3))


def _picture_channels(scene: Scene, width: int, height: int) -> np.ndarray:
    # Half the size is enough to average from, and four times faster to draw.
    pixels = render(scene, width // 2, height // 2).astype(np.float32) / 127.5 - 1
    small = _mean_over(pixels, CELL // 4)
    a, b, c, d = small[0::2, 0::2], small[0::2, 1::2], small[1::2, 0::2], small[1::2, 1::2]
    details = [a - b + c - d, a + b - c - d, a - b - c + d]
    return np.concatenate(
        [(a + b + c + d) / 4 - MIDDLE_COLOUR, *(DETAIL_GAIN * detail / 4 for detail in details)], axis=-1
    )


def _label_channels(scene: Scene, width: int, height: int) -> np.ndarray:
    placed, codes = lay_out(scene, width, height), subject_codes()
    owner = cover(placed, width, height, scale=LABEL_SCALE)
    labels = np.zeros((*owner.shape, 8), np.float32)
    ys, xs = np.mgrid[: owner.shape[0], : owner.shape[1]] * LABEL_SCALE + LABEL_SCALE / 2
    for k, one in enumerate(placed, start=1):
        is_here = owner == k
        labels[is_here, :6] = codes[one.subject.name]
        labels[is_here, 6] = (OFFSET_GAIN * (one.box.x - xs) / one.box.half)[is_here]
        labels[is_here, 7] = (OFFSET_GAIN * (one.box.y - ys) / one.box.half)[is_here]
    return _mean_over(labels, CELL // LABEL_SCALE)


def latent_of(scene: Scene, width: int, height: int) -> np.ndarray:
    """float32 [20, height / 32, width / 32], not yet scaled."""
    channels = np.concatenate([_picture_channels(scene, width, height), _label_channels(scene, width, height)], axis=-1)
    return np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32)


def shard_scenes(size: tuple[int, int], number: int) -> list[Scene]:
    random = np.random.default_rng([SEED, *size, number])
    return [draw_scene(random) for _ in range(SHARD_SCENES)]


def shard_path(folder: Path, size: tuple[int, int], number: int) -> Path:
    return folder / f"{size[0]}x{size[1]}-{number:04}.npy"


def make_shard(folder: Path, size: tuple[int, int], number: int) -> None:
    path = shard_path(folder, size, number)
    if path.exists():
        return
    latents = np.stack([latent_of(scene, *size) for scene in shard_scenes(size, number)])
    write_atomically(path, lambda file: np.save(file, latents.astype(np.float16)))


class LatentStore:
    """All shards of one size that were there when last looked."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._folder, self._size = folder, size
        self._latents: list[np.ndarray] = []
        self._scenes: list[list[Scene]] = []
        self.look()

    def look(self) -> None:
        while (path := shard_path(self._folder, self._size, len(self._latents))).exists():
            self._scenes.append(shard_scenes(self._size, len(self._latents)))
            self._latents.append(np.load(path))

    def __len__(self) -> int:
        return SHARD_SCENES * len(self._latents)

    def draw(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, list[Scene]]:
        """float16 [count, 20, h, w] as made, and the scenes they show."""
        places = [divmod(int(k), SHARD_SCENES) for k in random.integers(len(self), size=count)]
        return (
            np.stack([self._latents[shard][k] for shard, k in places]),
            [self._scenes[shard][k] for shard, k in places],
        )

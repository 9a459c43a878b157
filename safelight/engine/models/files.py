"""What a model is made of, wherever it came from: a folder in diffusers' layout or one checkpoint file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.engine.models.weights import Component
from safelight.engine.samplers import NoiseSchedule

if TYPE_CHECKING:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ModelFiles:
    """The parts of one model, not yet loaded. Stable Diffusion XL has two text encoders, the others one.

    `has_blank_negative`: an empty negative prompt is no text at all, zeros, instead of the encoded empty text.
    """

    where: Path
    unet: Component
    vae: Component
    text_encoders: tuple[Component, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    schedule: NoiseSchedule
    has_blank_negative: bool = False

    @property
    def is_xl(self) -> bool:
        return len(self.text_encoders) == 2

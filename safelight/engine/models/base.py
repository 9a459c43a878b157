"""The seam between the step loop and a model family: encode, predict, decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from safelight.engine.beginnings import Mask
    from safelight.engine.events import Pixels
    from safelight.engine.models.forwards import Compiler
    from safelight.engine.samplers import NoiseSchedule
    from safelight.runs import LoraUse


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """An encoded prompt: `hidden` [L, D], which only its model can read. `cut` is the end of the text that did not fit
    the encoder's window."""

    hidden: torch.Tensor
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How prompts are read: those over the text encoder's window whole or cut, `(word:1.2)` as a weight
    or as it stands."""

    is_long: bool = False
    is_weighted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PictureLatent:
    """An encoded picture: the latents [C, h, w] in float32 that may be meant, by their mean and deviation."""

    mean: torch.Tensor
    std: torch.Tensor


class ImageModel(Protocol):
    """One loaded model. Thread: engine. Rows never influence each other; dtypes are the model's own affair."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise it was trained on."""
        ...

    @property
    def device(self) -> torch.device:
        """Where latents and conditionings live."""
        ...

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """What holds its weights, and is moved when another model needs the device."""
        ...

    def register_loras(self, paths: Mapping[str, Path]) -> None:
        """LoRA files by name, each to be read when it is first used."""
        ...

    def adapted(self, loras: tuple[LoraUse, ...]) -> ImageModel:
        """The same model, sharing its weights, drawing with these LoRAs. Raises ModelError with the remedy."""
        ...

    def compiled(self, compiler: Compiler) -> ImageModel:
        """The same model, sharing its weights, with networks that run faster where that can be. Thread: any, as long
        as no LoRA is read."""
        ...

    def backend_of(self, latent_shape: tuple[int, int, int], num_windows: int = 1) -> str:
        """The backend for latents and prompts of this size, with its version where that is not torch."""
        ...

    def release(self) -> bool:
        """Give the device memory of what it can make again back; whether there was any."""
        ...

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt that takes one window."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens of a prompt are read."""
        ...

    def set_reading(self, reading: Reading) -> None:
        """How prompts are read from now on."""
        ...

    def count_windows(self, text: str) -> int:
        """How many windows of the text encoder a prompt wants; 1 where it is cut."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent that holds a picture of `height` x `width` pixels."""
        ...

    def encode(self, text: str, *, is_negative: bool = False, num_windows: int = 1) -> Conditioning:
        """Encode one prompt in so many windows. Some models know an empty negative prompt from an empty prompt."""
        ...

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        """`denoised` [R, C, h, w] in float32 for x [R, C, h, w] float32, sigma and timestep [R],
        conditioning [R, L, D]."""
        ...

    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        """Exactly [height, width, 3] from a latent [C, h, w] that was asked for by these sides."""
        ...

    def encode_picture(self, pixels: Pixels) -> PictureLatent:
        """Encode a picture [H, W, 3]; the latent has the shape that `latent_shape` gives for its sides."""
        ...

    def encode_mask(self, mask: Mask) -> torch.Tensor:
        """[1, h, w] in float32, ones where the mask [H, W] is true: it lies over the latent of a
        picture of its size."""
        ...

"""Models with exact answers, for tests of ours and of our users. torch is loaded on first use, not on import."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np

from safelight.engine.models.base import Conditioning, PictureLatent, Reading
from safelight.errors import ModelError
from safelight.runs import LoraUse

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from safelight.engine.beginnings import Mask
    from safelight.engine.events import Pixels
    from safelight.engine.models.forwards import Compiler
    from safelight.engine.samplers import NoiseSchedule

NUM_TOKENS = 8
WIDTH = 4
MAX_ROWS_NOTED = 1000


class FakeModel:
    """An ImageModel whose data is a Gaussian around one value per prompt, `value_of(text)`, with deviation `std`.

    With `std` 0 every correct sampler ends exactly at that value and the picture has the colour `colour_of(text)`; a
    row that is given its neighbour's sigma does not. With `std` above 0 the exact solution is known, so a sampler's
    order can be measured. It predicts noise from the timestep and leaves the denoising to sigma, as real networks do.

    `faults` maps prompts to what happens in the denoiser: "error", "nan", "memory" or "decode". `step_seconds` and
    `decode_seconds` make it slow. Its weights hold `num_bytes`. `calls` counts encode, predict and decode; `rows` lists
    the rows of the last predictions.
    """

    def __init__(
        self,
        *,
        std: float = 0.0,
        step_seconds: float = 0.0,
        decode_seconds: float = 0.0,
        max_rows: int | None = None,
        faults: Mapping[str, str] | None = None,
        num_bytes: int = 0,
    ) -> None:
        self._std = std
        self._step_seconds = step_seconds
        self._decode_seconds = decode_seconds
        self._max_rows = max_rows
        self._num_bytes = num_bytes
        self._reading = Reading()
        self._loras: frozenset[str] = frozenset()
        self._fault_of = {_value(text): fault for text, fault in (faults or {}).items()}
        self.calls = {"encode": 0, "predict": 0, "decode": 0}
        self.rows: list[int] = []

    @cached_property
    def schedule(self) -> NoiseSchedule:
        from safelight.engine.samplers import scaled_linear_schedule  # noqa: PLC0415

        # Ends at sigma 0, so that every sampler ends at the data.
        return scaled_linear_schedule(is_final_alpha_one=True)

    @cached_property
    def device(self) -> torch.device:
        import torch  # noqa: PLC0415

        return torch.device("cpu")

    @cached_property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        import torch  # noqa: PLC0415

        network = torch.nn.Module()
        network.register_buffer("weights", torch.zeros(self._num_bytes, dtype=torch.uint8))
        return (network,)

    def register_loras(self, paths: Mapping[str, Path]) -> None:
        self._loras = frozenset(paths)

    def adapted(self, loras: tuple[LoraUse, ...]) -> FakeModel:
        """The same model: its LoRAs change nothing."""
        for use in loras:
            if use.name not in self._loras:
                raise ModelError(f"no LoRA {use.name} was registered")
        return self

    def compiled(self, compiler: Compiler) -> Self:
        return self

    def backend_of(self, latent_shape: tuple[int, int, int], num_windows: int = 1) -> str:
        return "torch"

    def release(self) -> bool:
        return False

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        return NUM_TOKENS, WIDTH

    @property
    def num_prompt_tokens(self) -> int:
        return NUM_TOKENS

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 4, math.ceil(height / 8), math.ceil(width / 8)

    def set_reading(self, reading: Reading) -> None:
        self._reading = reading

    def count_windows(self, text: str) -> int:
        return max(1, math.ceil(len(text.split()) / NUM_TOKENS)) if self._reading.is_long else 1

    def encode(self, text: str, *, is_negative: bool = False, num_windows: int = 1) -> Conditioning:
        """Reads `NUM_TOKENS` words in each window."""
        import torch  # noqa: PLC0415

        self.calls["encode"] += 1
        num_read = num_windows * NUM_TOKENS
        return Conditioning(torch.full((num_read, WIDTH), _value(text)), " ".join(text.split()[num_read:]))

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor
    ) -> torch.Tensor:
        self.calls["predict"] += 1
        self.rows.append(len(x))
        del self.rows[:-MAX_ROWS_NOTED]
        time.sleep(self._step_seconds)
        if self._max_rows is not None and len(x) > self._max_rows:
            raise MemoryError
        values = conditioning[:, 0, 0]
        sigma_seen = sigma.new_tensor(self.schedule.sigma_at(timestep.double().numpy()))[:, None, None, None]
        mean, sigma = values[:, None, None, None], sigma[:, None, None, None]
        noise = (x - mean) * sigma_seen / (sigma_seen**2 + self._std**2)
        denoised = x - sigma * noise
        if self._std == 0:
            # Where sigma is right this is the mean, without the rounding.
            denoised = mean.expand_as(x).where(sigma_seen == sigma, denoised)
        return self._spoil(denoised, values)

    def decode(self, latent: torch.Tensor, height: int, width: int) -> Pixels:
        self.calls["decode"] += 1
        time.sleep(self._decode_seconds)
        colours = np.clip((latent[:3].numpy() + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
        if self._fault_of.get(float(latent.flatten()[0])) == "decode":
            raise ValueError("this latent cannot be decoded")
        picture = colours.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        return np.ascontiguousarray(picture.transpose(1, 2, 0))

    def encode_picture(self, pixels: Pixels) -> PictureLatent:
        """What `decode` makes these pixels of, as far as cells of 8 pixels can hold them."""
        import torch  # noqa: PLC0415

        colours = torch.from_numpy(pixels[::8, ::8].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1.0
        mean = torch.cat([colours, colours[:1]])
        return PictureLatent(mean, torch.zeros_like(mean))

    def encode_mask(self, mask: Mask) -> torch.Tensor:
        import torch  # noqa: PLC0415

        return torch.from_numpy(mask[::8, ::8].astype(np.float32))[None]

    def _spoil(self, denoised: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        for row, value in enumerate(values.tolist()):
            fault = self._fault_of.get(value)
            if fault == "error":
                _raise_fault()
            if fault == "memory":
                raise MemoryError
            if fault == "nan":
                denoised[row] = math.nan
        return denoised


def value_of(text: str) -> float:
    """The value all latents of a prompt have: -0.75 to 0.75, exact in float32."""
    return _value(text)


def colour_of(text: str) -> int:
    """The value of every channel of every pixel that FakeModel draws for a prompt without guidance."""
    return round((_value(text) + 1.0) * 127.5)


def _value(text: str) -> float:
    digest = hashlib.sha256(text.encode()).digest()
    return (int.from_bytes(digest[:2], "big") % 1537 - 768) / 1024.0


def _raise_fault() -> NoReturn:
    raise ValueError("the denoiser was told to fail")

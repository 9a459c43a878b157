"""Prompts to conditionings: CLIP's text encoders, alone (Stable Diffusion 1.x and 2.x) or as a pair (XL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn.functional import pad
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.engine.models.base import Conditioning, Reading
from safelight.engine.models.windows import count_windows, read_windows, window_of


class PromptEncoder(Protocol):
    """The text side of a model."""

    reading: Reading

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]: ...

    @property
    def conditioning_shape(self) -> tuple[int, int]: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    def count_windows(self, text: str) -> int: ...

    def encode(self, text: str, *, is_negative: bool, num_windows: int = 1) -> Conditioning: ...

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        """What the denoiser takes beside latents and timesteps, for conditionings [R, L, D] and a picture's sides."""
        ...


class ClipPrompt:
    """One text encoder; its last output, normed, is what the denoiser listens to."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self.reading = Reading()
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._uses_mask = bool(getattr(encoder.config, "use_attention_mask", False))

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        return (self._encoder,)

    @property
    def num_prompt_tokens(self) -> int:
        """Without the start and end tokens."""
        return window_of(self._tokenizer) - 2

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        return window_of(self._tokenizer), int(self._encoder.config.hidden_size)

    def count_windows(self, text: str) -> int:
        return count_windows(self._tokenizer, text, self.reading)

    def encode(self, text: str, *, is_negative: bool, num_windows: int = 1) -> Conditioning:
        windows = read_windows(self._tokenizer, text, self.reading, num_windows=num_windows)
        device = self._encoder.device
        mask = windows.mask.to(device) if self._uses_mask else None
        hidden = self._encoder(windows.ids.to(device), attention_mask=mask)[0]
        return Conditioning(windows.weigh(hidden).flatten(0, 1), windows.cut)

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        return {"encoder_hidden_states": conditioning}


class ClipPair:
    """Two text encoders over the same text; of both the last but one layer, side by side. The second one's
    summary of the whole text travels as one more row of the conditioning, filled up with zeros (Podell et al.
    2023, arXiv 2307.01952)."""

    def __init__(
        self,
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        *,
        has_blank_negative: bool,
    ) -> None:
        self.reading = Reading()
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._has_blank_negative = has_blank_negative
        self._summary_width = int(encoders[1].text_projection.out_features)

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        return self._encoders

    @property
    def num_prompt_tokens(self) -> int:
        """Without the start and end tokens."""
        return window_of(self._tokenizers[0]) - 2

    @property
    def conditioning_shape(self) -> tuple[int, int]:
        return window_of(self._tokenizers[0]) + 1, sum(int(each.config.hidden_size) for each in self._encoders)

    def count_windows(self, text: str) -> int:
        return count_windows(self._tokenizers[0], text, self.reading)

    def encode(self, text: str, *, is_negative: bool, num_windows: int = 1) -> Conditioning:
        first, second = self._encoders
        window, width = window_of(self._tokenizers[0]), self.conditioning_shape[1]
        if is_negative and not text and self._has_blank_negative:
            blank = torch.zeros(num_windows * window + 1, width, dtype=first.dtype, device=first.device)
            return Conditioning(blank)
        one, two = (read_windows(each, text, self.reading, num_windows=num_windows) for each in self._tokenizers)
        outputs = second(two.ids.to(first.device), output_hidden_states=True)
        heard = one.weigh(first(one.ids.to(first.device), output_hidden_states=True).hidden_states[-2])
        hidden = torch.cat([heard, two.weigh(outputs.hidden_states[-2])], dim=-1).flatten(0, 1)
        # Of a long prompt the first window's: what is meant stands there.
        summary = pad(outputs.text_embeds[:1], (0, width - self._summary_width))
        return Conditioning(torch.cat([hidden, summary]), one.cut)

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        """The picture is said to be whole and as large as it is drawn: original size, no crop, target size."""
        # Filled in on the device: a list would be uploaded in every step.
        column = (len(conditioning), 1)
        sides = [conditioning.new_full(column, side) for side in (height, width, 0, 0, height, width)]
        return {
            "encoder_hidden_states": conditioning[:, :-1],
            "added_cond_kwargs": {
                "text_embeds": conditioning[:, -1, : self._summary_width],
                "time_ids": torch.cat(sides, dim=1),
            },
        }

"""Prompts to conditionings: CLIP's text encoders, alone (Stable Diffusion 1.x and 2.x) or as a pair (XL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn.functional import pad
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from safelight.engine.models.base import Conditioning


class PromptEncoder(Protocol):
    """The text side of a model."""

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]: ...

    @property
    def conditioning_shape(self) -> tuple[int, int]: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    def encode(self, text: str, *, is_negative: bool) -> Conditioning: ...

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        """What the denoiser takes beside latents and timesteps, for conditionings [R, L, D] and a picture's sides."""
        ...


class ClipPrompt:
    """One text encoder; its last output, normed, is what the denoiser listens to."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
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

    def encode(self, text: str, *, is_negative: bool) -> Conditioning:
        tokens = tokenize(self._tokenizer, text)
        device = self._encoder.device
        mask = tokens["attention_mask"].to(device) if self._uses_mask else None
        hidden = self._encoder(tokens["input_ids"].to(device), attention_mask=mask)[0][0]
        return Conditioning(hidden, cut_of(self._tokenizer, text))

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        return {"encoder_hidden_states": conditioning}


class ClipPair:
    """Two text encoders over the same text; of both the last but one layer, side by side. The second one's summary of the
    whole text travels as one more row of the conditioning, filled up with zeros (Podell et al. 2023, arXiv 2307.01952)."""

    def __init__(
        self,
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        *,
        has_blank_negative: bool,
    ) -> None:
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

    def encode(self, text: str, *, is_negative: bool) -> Conditioning:
        first, second = self._encoders
        if is_negative and not text and self._has_blank_negative:
            return Conditioning(torch.zeros(self.conditioning_shape, dtype=first.dtype, device=first.device))
        ids = [tokenize(tokenizer, text)["input_ids"].to(first.device) for tokenizer in self._tokenizers]
        one = first(ids[0], output_hidden_states=True).hidden_states[-2][0]
        other = second(ids[1], output_hidden_states=True)
        hidden = torch.cat([one, other.hidden_states[-2][0]], dim=-1)
        summary = pad(other.text_embeds, (0, hidden.shape[-1] - self._summary_width))
        return Conditioning(torch.cat([hidden, summary]), cut_of(self._tokenizers[0], text))

    def denoiser_inputs(self, conditioning: torch.Tensor, *, height: int, width: int) -> Mapping[str, object]:
        """The picture is said to be whole and as large as it is drawn: original size, no crop, target size."""
        sides = torch.tensor([height, width, 0, 0, height, width], dtype=conditioning.dtype, device=conditioning.device)
        return {
            "encoder_hidden_states": conditioning[:, :-1],
            "added_cond_kwargs": {
                "text_embeds": conditioning[:, -1, : self._summary_width],
                "time_ids": sides.expand(len(conditioning), -1),
            },
        }


def window_of(tokenizer: CLIPTokenizer) -> int:
    """Tokens of one prompt, the start and end tokens among them."""
    return int(tokenizer.model_max_length)


def tokenize(tokenizer: CLIPTokenizer, text: str) -> Mapping[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, [1, L]: cut or filled up to the window."""
    tokens: Mapping[str, torch.Tensor] = tokenizer(
        text, padding="max_length", max_length=window_of(tokenizer), truncation=True, return_tensors="pt"
    )
    return tokens


def cut_of(tokenizer: CLIPTokenizer, text: str) -> str:
    """The end of the text that does not fit the window, as it was written."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    num_read = window_of(tokenizer) - 2
    return text[offsets[num_read][0] :].strip() if len(offsets) > num_read else ""

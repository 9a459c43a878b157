"""Encoded prompts, kept: least recently used out first, the empty prompt of each model never. A long prompt takes the
room of as many as it has windows."""

from __future__ import annotations

from collections import OrderedDict

from safelight.engine.models.base import Conditioning, ImageModel
from safelight.engine.tasks import LiveRun
from safelight.runs import LoraUse

_Asked = tuple[str, str, bool, tuple[LoraUse, ...], int]
"""Model, text, whether it stands on the negative side, what changes the encoder, and in how many windows."""


class PromptCache:
    """Conditionings by model and text. Thread: engine."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[_Asked, Conditioning] = OrderedDict()
        self._empty: dict[_Asked, Conditioning] = {}

    def encode(
        self,
        model_key: str,
        model: ImageModel,
        text: str,
        *,
        is_negative: bool = False,
        loras: tuple[LoraUse, ...] = (),
        num_windows: int = 1,
    ) -> Conditioning:
        """The conditioning of `text`, from the cache where it is there."""
        asked = (model_key, text, is_negative, loras, num_windows)
        # Of LoRAs there are as many scales as numbers, and of lengths more than are worth a place for good.
        if not text and not loras and num_windows == 1:
            if asked not in self._empty:
                self._empty[asked] = model.encode(text, is_negative=is_negative, num_windows=num_windows)
            return self._empty[asked]
        found = self._kept.get(asked)
        if found is None:
            found = self._kept[asked] = model.encode(text, is_negative=is_negative, num_windows=num_windows)
        self._kept.move_to_end(asked)
        while sum(num_windows for *_, num_windows in self._kept) > self._size:
            self._kept.popitem(last=False)
        return found

    def forget(self, model_key: str) -> None:
        """The model is unloaded."""
        for kept in (self._empty, self._kept):
            for asked in [asked for asked in kept if asked[0] == model_key]:
                del kept[asked]


def warnings_about(run: LiveRun) -> tuple[str, ...]:
    """One for each of its encoded prompts whose end the model does not read."""
    limit = f"is longer than the {run.model.num_prompt_tokens} tokens this model reads; not read was:"
    texts = {"prompt": run.prompt, "negative_prompt": run.negative}
    return tuple(f"{field} {limit} {text.cut}" for field, text in texts.items() if text is not None and text.cut)

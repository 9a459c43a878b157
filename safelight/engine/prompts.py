"""Encoded prompts, kept: least recently used out first, the empty prompt of each model never."""

from __future__ import annotations

from collections import OrderedDict

from safelight.engine.models.base import Conditioning, ImageModel


class PromptCache:
    """Conditionings by model and text. Thread: engine."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str, str], Conditioning] = OrderedDict()
        self._empty: dict[str, Conditioning] = {}

    def encode(self, model_key: str, model: ImageModel, text: str) -> Conditioning:
        """The conditioning of `text`, from the cache where it is there."""
        if not text:
            if model_key not in self._empty:
                self._empty[model_key] = model.encode(text)
            return self._empty[model_key]
        place = (model_key, text)
        found = self._kept.get(place)
        if found is None:
            found = self._kept[place] = model.encode(text)
        self._kept.move_to_end(place)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return found

    def forget(self, model_key: str) -> None:
        """The model is unloaded."""
        self._empty.pop(model_key, None)
        for place in [place for place in self._kept if place[0] == model_key]:
            del self._kept[place]

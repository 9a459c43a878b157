"""`--lora`: the LoRAs of a deployment, looked at before anything is stored, and those that a picture is drawn with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from safelight.errors import FieldError, InvalidFields, ModelError
from safelight.families import check_lora
from safelight.runs import LoraUse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def read_loras(pairs: Sequence[str], weights: Path | ModelError) -> tuple[tuple[str, str], ...]:
    """Names with absolute paths. `weights` are the model's, where they are here. Raises InvalidFields, one entry for
    each pair that is wrong: no name, no LoRA, or one for another family."""
    wrong: list[FieldError] = []
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        file = Path(text).resolve()
        if not _NAME.fullmatch(name) or not text:
            wrong.append(
                FieldError("lora", f"{pair!r} is not NAME=FILE with a name of 1 to 64 letters, digits, . _ and -")
            )
        elif name in found:
            wrong.append(FieldError("lora", f"{name} is named twice"))
        else:
            try:
                check_lora(file, model=weights if isinstance(weights, Path) else None)
            except ModelError as error:
                wrong.append(FieldError("lora", f"{name}: {error.message}"))
            found[name] = str(file)
    if wrong:
        raise InvalidFields(wrong)
    return tuple(found.items())


def lora_uses(texts: Sequence[str]) -> tuple[LoraUse, ...]:
    """What NAME=SCALE says, or NAME for a scale of 1. Raises InvalidFields."""
    found: list[LoraUse] = []
    for text in texts:
        name, _, number = text.rpartition("=") if "=" in text else (text, "=", "1")
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not name or not math.isfinite(scale):
            raise InvalidFields([FieldError("lora", f"{text!r} is not NAME=SCALE with a number, such as lego=0.8")])
        found.append(LoraUse(name, scale))
    return tuple(found)


def own_loras(texts: Sequence[str], weights: Path) -> tuple[tuple[tuple[str, str], ...], tuple[LoraUse, ...]]:
    """Of FILE=SCALE: the files by names of their own, and how they are used. Raises InvalidFields, as
    `read_loras` does."""
    uses = lora_uses(texts)
    named = tuple(LoraUse(_UNFIT.sub("-", Path(use.name).stem).strip("._-") or "lora", use.scale) for use in uses)
    files = [f"{short.name}={use.name}" for short, use in zip(named, uses, strict=True)]
    return read_loras(files, weights), named

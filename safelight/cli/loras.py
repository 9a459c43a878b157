"""`--lora NAME=FILE`: the LoRAs of a deployment, looked at before anything is stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safelight.errors import FieldError, InvalidFields, ModelError
from safelight.families import check_lora

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_loras(pairs: Sequence[str], weights: Path | ModelError) -> tuple[tuple[str, str], ...]:
    """Names with absolute paths. `weights` are the model's, where they are here. Raises InvalidFields, one entry for each pair
    that is wrong: no name, no LoRA, or one for another family."""
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

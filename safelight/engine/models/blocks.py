"""The repeated blocks of a UNet through torch.compile, while its model is loaded: never while somebody
waits for a picture."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch

from safelight.engine.models.forwards import Forward, cache_folder, with_rows

log = logging.getLogger(__name__)

MAX_VARIANTS = 256
"""Of one block's code, in this process: each width of each model is one, and one row is another than many."""


def keep_compiled() -> None:
    """Have what is compiled kept with what other backends keep, unless the environment names a place. To be called
    before networks are imported: that is when torch asks."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor")))


def compile_blocks(
    unet: Any,
    args: tuple[torch.Tensor, ...],
    inputs: dict[str, Any],
    *,
    rows: Sequence[int],
    compiler: str = "inductor",
) -> Forward:
    """The UNet's forward pass, its blocks compiled for the example's shapes and these numbers of rows. What would have
    to be compiled later runs as it was; so does everything where the compiler fails or is not there."""
    twin = _twin_of(unet)
    try:
        twin.compile_repeated_blocks(backend=compiler, dynamic=True)
        with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS):
            for each in rows:
                twin(*with_rows(args, each), return_dict=False, **with_rows(inputs, each))
    except Exception as error:
        log.warning("the UNet's blocks are not compiled: torch.compile cannot take them (%s)", error)
        forward: Forward = unet
        return forward

    def call(*args: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        with torch.compiler.set_stance("eager_on_recompile"):
            out: tuple[torch.Tensor, ...] = twin(*args, **inputs)
        return out

    return call


def _twin_of(unet: Any) -> Any:
    """Another network over the very same weights: its parameters move with it, and what LoRAs hook into the one is
    not in the other."""
    tensors = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(each): each for each in tensors})

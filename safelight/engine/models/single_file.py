"""One checkpoint file with a whole model, as the community trades them: configs found from shapes, names translated.

The names are those of the CompVis and Stability AI code that such files were trained with; diffusers calls the same
layers by the names on the right of the tables here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safelight.engine.models.files import ModelFiles
from safelight.engine.models.ldm_names import clip_place, open_clip_place, unet_place, vae_place
from safelight.engine.models.ldm_shapes import (
    Shapes,
    clip_config,
    layers_per_block,
    num_vae_levels,
    open_clip_config,
    unet_config,
    vae_config,
)
from safelight.engine.models.noise import read_schedule
from safelight.engine.models.vocabulary import END, tokenizer_for
from safelight.engine.models.weights import Component, Config, Place
from safelight.errors import ModelError
from safelight.families import TEXT_ENCODER_PREFIXES, TITLES, UNET_PREFIX, VAE_PREFIX, Family, family_of
from safelight.headers import Header, read_header

_V_KEY, _ZERO_SNR_KEY = "v_pred", "ztsnr"
"""Empty tensors by which newer files say what their denoiser predicts, and that its noise ends at no signal at all."""

_SAYS_V = re.compile(r"^\s*parameterization\s*:\s*[\"']?(v|eps)\b", re.MULTILINE)

_PAD_TOKENS = {
    Family.STABLE_DIFFUSION_1: (END,),
    Family.STABLE_DIFFUSION_2: ("!",),
    Family.STABLE_DIFFUSION_XL: (END, "!"),
}


def open_single_file(file: Path) -> ModelFiles:
    """The model in a checkpoint file, not yet loaded. Raises ModelError with the remedy."""
    header = read_header(file)
    family = family_of(header)
    try:
        encoders = _text_encoders(header, family)
        unet = unet_config(
            _under(header, UNET_PREFIX),
            is_first_family=family is Family.STABLE_DIFFUSION_1,
            summary_width=int(str(encoders[-1].config.get("projection_dim", 0))),
        )
        vae = vae_config(_under(header, VAE_PREFIX), is_xl=family is Family.STABLE_DIFFUSION_XL)
    except (LookupError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{file} lacks layers of {TITLES[family]} ({error}); download it again") from error
    num_layers, num_levels = layers_per_block(_under(header, UNET_PREFIX)), num_vae_levels(_under(header, VAE_PREFIX))
    unet_places = partial(unet_place, num_layers=num_layers)
    vae_places = partial(vae_place, num_levels=num_levels)
    return ModelFiles(
        where=file,
        unet=Component(file, unet, [file], _below(UNET_PREFIX, unet_places)),
        vae=Component(file, vae, [file], _below(VAE_PREFIX, vae_places)),
        text_encoders=encoders,
        tokenizers=tuple(tokenizer_for(file, pad_token=token) for token in _PAD_TOKENS[family]),
        schedule=read_schedule(file, _scheduler_config(header, family)),
        has_blank_negative=family is Family.STABLE_DIFFUSION_XL,
    )


def _text_encoders(header: Header, family: Family) -> tuple[Component, ...]:
    file, prefixes = header.file, TEXT_ENCODER_PREFIXES[family]
    is_xl = family is Family.STABLE_DIFFUSION_XL
    encoders = []
    for prefix in prefixes:
        shapes = _under(header, prefix)
        if prefix.endswith(".model."):
            config = open_clip_config(shapes, is_last_layer_read=is_xl)
            num_layers = int(str(config["num_hidden_layers"]))
            place = partial(open_clip_place, num_layers=num_layers, has_projection=is_xl)
            encoders.append(Component(file, config, [file], _below(prefix, place)))
        else:
            encoders.append(Component(file, clip_config(shapes), [file], _below(prefix, clip_place)))
    return tuple(encoders)


def _scheduler_config(header: Header, family: Family) -> Config:
    if _ZERO_SNR_KEY in header.shapes:
        raise ModelError(f"{header.file} was trained to zero terminal signal, which is not supported by this version")
    is_xl = family is Family.STABLE_DIFFUSION_XL
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "timestep_spacing": "leading" if is_xl else None,
        "prediction_type": "v_prediction" if _predicts_v(header, family) else "epsilon",
    }


def _predicts_v(header: Header, family: Family) -> bool:
    """Weights do not tell. Asked are a YAML beside the file, its metadata, a key; else the family's
    most common kind."""
    try:
        said = _SAYS_V.search(header.file.with_suffix(".yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    if said:
        return said[1] == "v"
    stated = header.metadata.get("modelspec.prediction_type", "").casefold()
    if stated:
        return stated.startswith("v")
    return family is Family.STABLE_DIFFUSION_2 or _V_KEY in header.shapes


def _under(header: Header, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in header.shapes.items() if name.startswith(prefix)}


def _below(prefix: str, place_of: Callable[[str], Place | None]) -> Callable[[str], Place | None]:
    """`place_of` for names under a prefix; all others are another network's."""
    return lambda name: place_of(name.removeprefix(prefix)) if name.startswith(prefix) else None

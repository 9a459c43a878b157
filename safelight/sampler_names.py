"""The names the field has for samplers and spacings: those of diffusers, k-diffusion and A1111. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from safelight.runs import SamplerName, Spacing


def _plain(name: str) -> str:
    """Names of the field differ in case, blanks and signs only; the plus signs of DPM++ are its `pp`."""
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("+", "p"))


_SAMPLERS: Mapping[str, SamplerName] = {
    _plain(alias): sampler
    for sampler, names in {
        SamplerName.EULER: "Euler, k_euler, EulerDiscrete, EulerDiscreteScheduler, sample_euler",
        SamplerName.EULER_ANCESTRAL: "Euler a, k_euler_a, k_euler_ancestral, EulerAncestralDiscrete,"
        " EulerAncestralDiscreteScheduler, sample_euler_ancestral",
        SamplerName.DDIM: "DDIM, DDIMScheduler",
        SamplerName.DPMPP_2M: "DPM++ 2M, k_dpmpp_2m, DPMSolverMultistep, DPMSolverMultistepScheduler, DPM-Solver++,"
        " DPM-Solver++(2M), sample_dpmpp_2m",
        SamplerName.DPMPP_2M_SDE: "DPM++ 2M SDE, k_dpmpp_2m_sde, sde-dpmsolver++, sample_dpmpp_2m_sde",
        SamplerName.UNIPC: "UniPC, uni_pc_bh2, UniPCMultistep, UniPCMultistepScheduler",
        SamplerName.HEUN: "Heun, k_heun, HeunDiscrete, HeunDiscreteScheduler, sample_heun",
        SamplerName.LMS: "LMS, k_lms, LMSDiscrete, LMSDiscreteScheduler, sample_lms",
        SamplerName.LCM: "LCM, LCMScheduler",
        SamplerName.PNDM: "PNDM, PLMS, PNDMScheduler",
    }.items()
    for alias in (sampler.value, *names.split(", "))
}

_SPACINGS: Mapping[str, Spacing] = {
    _plain(alias): spacing
    for alias, spacing in {
        **{spacing.value: spacing for spacing in Spacing},
        "auto": Spacing.AUTOMATIC,
        "default": Spacing.AUTOMATIC,
        "uniform": Spacing.LINSPACE,
        "normal": Spacing.LINSPACE,
        "use_karras_sigmas": Spacing.KARRAS,
        "use_exponential_sigmas": Spacing.EXPONENTIAL,
    }.items()
}

_NAMED_WITH_A_SAMPLER = ("karras", "exponential", "sgm_uniform")


def read_sampler(text: str) -> tuple[SamplerName, Spacing | None]:
    """A sampler by any name the field has for it, and the spacing where the name holds one: "DPM++ 2M Karras".

    Raises ValueError with the rest of a sentence about the text.
    """
    plain = _plain(text)
    if plain in _SAMPLERS:
        return _SAMPLERS[plain], None
    for suffix in _NAMED_WITH_A_SAMPLER:
        bare = plain.removesuffix(_plain(suffix))
        if bare != plain and bare in _SAMPLERS:
            return _SAMPLERS[bare], _SPACINGS[_plain(suffix)]
    nearest = _SAMPLERS[_nearest(plain, _SAMPLERS)]
    raise ValueError(f"is not one of {', '.join(SamplerName)}; the nearest is {nearest}")


def read_spacing(text: str) -> Spacing:
    """A spacing by any name the field has for it. Raises ValueError with the rest of a sentence about the text."""
    plain = _plain(text)
    if plain in _SPACINGS:
        return _SPACINGS[plain]
    nearest = _SPACINGS[_nearest(plain, _SPACINGS)]
    raise ValueError(f"is not one of {', '.join(Spacing)}; the nearest is {nearest}")


def _nearest(plain: str, known: Iterable[str]) -> str:
    """The first of `known` where nothing is alike."""
    choices = list(known)
    # Cut: the time to compare grows with the square of the length, and the text is a stranger's.
    return next(iter(difflib.get_close_matches(plain[:40], choices, n=1, cutoff=0.4)), choices[0])

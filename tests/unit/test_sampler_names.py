"""The names samplers and spacings go by, and which of them go together."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.api.dialects.native import to_params
from safelight.api.params import complete, find_wrong
from safelight.cli.asking import sampling
from safelight.deployments import Defaults, Deployment, Limits
from safelight.errors import InvalidFields
from safelight.runs import RunParams, SamplerName, Spacing
from safelight.sampler_names import read_sampler, read_spacing
from safelight.store.rows import from_json, to_json

KNOWN = {
    "DPM++ 2M Karras": ("dpmpp_2m", "karras"),
    "dpm++ 2m": ("dpmpp_2m", None),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "exponential"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", None),
    "K_DPMPP_2M": ("dpmpp_2m", None),
    "Euler a": ("euler_ancestral", None),
    "EULER": ("euler", None),
    "Euler SGM Uniform": ("euler", "sgm_uniform"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", None),
    "UniPC": ("unipc", None),
    "uni_pc_bh2": ("unipc", None),
    "LMS Karras": ("lms", "karras"),
    " DDIM ": ("ddim", None),
    "PLMS": ("pndm", None),
    "PNDMScheduler": ("pndm", None),
    "Heun": ("heun", None),
    "LCM": ("lcm", None),
}


def wrong_fields(deployment: Deployment | None = None, **body: object) -> dict[str, str]:
    asked = to_params({"prompt": "a cat", **body})
    deployment = deployment or Deployment(name="d", version=1, model="pinhole")
    params = complete(asked, deployment, fresh_seed=1)
    return {error.field: error.message for error in find_wrong(asked, params, deployment)}


@pytest.mark.parametrize(("name", "meant"), KNOWN.items())
def test_a_sampler_is_known_by_all_its_names(name: str, meant: tuple[str, str | None]) -> None:
    assert read_sampler(name) == meant
    asked = to_params({"prompt": "a cat", "sampler": name})
    assert (asked.sampler, asked.spacing, asked.wrong) == (*meant, ())
    assert sampling(name, None) == {"sampler": meant[0], "spacing": meant[1]}


@pytest.mark.parametrize("name", ["DPM++ SDE", "DPM2", "DPM++ 3M SDE Karras", "DPM++ 2S a", "DEIS", "Karras", "", "🚀"])
def test_a_sampler_that_is_not_here_is_never_taken_for_another(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of euler, .*; the nearest is "):
        read_sampler(name)
    assert "the nearest is" in wrong_fields(sampler=name)["sampler"]
    with pytest.raises(InvalidFields, match="sampler"):
        sampling(name, None)


@given(st.text())
def test_any_text_is_a_sampler_or_refused(text: str) -> None:
    for read in (read_sampler, read_spacing):
        try:
            read(text)
        except ValueError as error:
            assert str(error).startswith("is not one of")


def test_a_very_long_name_is_refused_quickly() -> None:
    assert "sampler" in wrong_fields(sampler="euler" * 100_000)


def test_spacings_are_known_by_their_other_names() -> None:
    assert read_spacing("SGM Uniform") is Spacing.SGM_UNIFORM
    assert read_spacing("Automatic") is Spacing.AUTOMATIC
    assert read_spacing("use_karras_sigmas") is Spacing.KARRAS
    assert wrong_fields(spacing="karas")["spacing"].endswith("the nearest is karras")


def test_a_spacing_beside_a_sampler_that_holds_one_must_be_the_same() -> None:
    assert wrong_fields(sampler="DPM++ 2M Karras", spacing="Karras") == {}
    said = wrong_fields(sampler="DPM++ 2M Karras", spacing="exponential")["spacing"]
    assert said == 'exponential contradicts the sampler "DPM++ 2M Karras", which says karras'
    with pytest.raises(InvalidFields, match="contradicts"):
        sampling("DPM++ 2M Karras", "exponential")


@pytest.mark.parametrize("sampler", list(SamplerName))
@pytest.mark.parametrize("spacing", list(Spacing))
def test_what_a_sampler_does_not_take_is_refused_with_the_nearest(sampler: SamplerName, spacing: Spacing) -> None:
    wrong = wrong_fields(sampler=sampler, spacing=spacing)
    if spacing in sampler.spacings:
        assert wrong == {}
    else:
        assert list(wrong) == ["spacing"] and wrong["spacing"].startswith(f"{spacing} is not one that {sampler}")
        nearest = wrong["spacing"].rpartition("the nearest is ")[2]
        assert Spacing(nearest) in sampler.spacings


def test_more_steps_than_a_sampler_has_are_refused() -> None:
    said = wrong_fields(sampler="lcm", num_inference_steps=51)
    assert said == {"num_inference_steps": "51 is more than the 50 steps that lcm has; the nearest is 50"}
    assert wrong_fields(sampler="lcm", num_inference_steps=50) == {}
    assert "between 1 and 150" in wrong_fields(sampler="lcm", num_inference_steps=0)["num_inference_steps"]
    assert "between 1 and 150" in wrong_fields(sampler="euler", num_inference_steps=151)["num_inference_steps"]
    roomy = Deployment(name="d", version=1, model="pinhole", limits=Limits(max_steps=5000))
    assert "998" in wrong_fields(roomy, num_inference_steps=999)["num_inference_steps"]


def test_nobody_is_refused_for_the_spacing_of_the_deployment() -> None:
    defaults = Defaults(sampler=SamplerName.DPMPP_2M, spacing=Spacing.KARRAS)
    deployment = Deployment(name="d", version=1, model="pinhole", defaults=defaults)

    def spacing_for(**body: object) -> Spacing:
        return complete(to_params({"prompt": "", **body}), deployment, fresh_seed=1).spacing

    assert spacing_for() is spacing_for(sampler="euler") is Spacing.KARRAS
    assert spacing_for(sampler="ddim") is spacing_for(sampler="lcm") is Spacing.AUTOMATIC
    assert spacing_for(spacing="automatic") is Spacing.AUTOMATIC


def test_a_run_that_was_stored_without_a_spacing_is_still_read() -> None:
    params = RunParams(prompt="a cat", sampler=SamplerName.HEUN)
    stored = asdict(params)
    del stored["spacing"]
    assert from_json(RunParams, json.dumps(stored)) == params
    chosen = replace(params, spacing=Spacing.KARRAS)
    read = from_json(RunParams, to_json(chosen))
    assert read == chosen and isinstance(read.spacing, Spacing)


def test_the_document_names_every_sampler_and_spacing() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "samplers.md").read_text(encoding="utf-8")
    for name in (*SamplerName, *Spacing):
        assert f"| `{name}` |" in text

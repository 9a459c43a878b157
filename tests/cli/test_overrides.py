from __future__ import annotations

import pytest

from safelight.cli.overrides import known_keys, parse_overrides
from safelight.deployments import Defaults, Limits
from safelight.errors import InvalidFields
from safelight.runs import OutputFormat, SamplerName, Spacing


def test_values_get_the_type_of_their_key() -> None:
    overrides = parse_overrides(["height=768", "guidance_scale=9", "sampler=ddim", "max_side=768", "embed_metadata=no"])
    defaults, limits = overrides.apply(Defaults())
    assert (defaults.height, defaults.guidance_scale, defaults.sampler) == (768, 9.0, SamplerName.DDIM)
    assert limits == Limits(max_side=768)
    assert not overrides.embed_metadata


def test_a_sampler_may_be_set_by_any_of_its_names_and_bring_its_spacing() -> None:
    defaults, _ = parse_overrides(["sampler=DPM++ 2M Karras"]).apply(Defaults())
    assert (defaults.sampler, defaults.spacing) == (SamplerName.DPMPP_2M, Spacing.KARRAS)
    defaults, _ = parse_overrides(["spacing=SGM Uniform"]).apply(Defaults())
    assert (defaults.sampler, defaults.spacing) == (SamplerName.EULER, Spacing.SGM_UNIFORM)


@pytest.mark.parametrize("pairs", [["sampler=ddim", "spacing=karras"], ["sampler=lcm", "num_inference_steps=60"]])
def test_a_default_that_the_sampler_does_not_take_is_refused(pairs: list[str]) -> None:
    with pytest.raises(InvalidFields, match="the nearest is"):
        parse_overrides(pairs).apply(Defaults())


def test_what_is_not_named_stays_the_models_own() -> None:
    own = Defaults(num_inference_steps=30, output_format=OutputFormat.WEBP)
    defaults, limits = parse_overrides([]).apply(own)
    assert (defaults, limits) == (own, Limits())


def test_a_text_may_hold_the_sign() -> None:
    assert parse_overrides(["negative_prompt=a=b"]).defaults == {"negative_prompt": "a=b"}


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(InvalidFields) as caught:
        parse_overrides(["hight=768"])
    for key in known_keys():
        assert key in caught.value.message


@pytest.mark.parametrize(
    "pair",
    ["height", "height=", "height=12.5", "guidance_scale=nan", "guidance_scale=inf", "embed_metadata=2", "sampler=x"],
)
def test_a_value_of_another_type_is_refused(pair: str) -> None:
    with pytest.raises(InvalidFields):
        parse_overrides([pair])


def test_every_wrong_pair_is_named_at_once() -> None:
    with pytest.raises(InvalidFields) as caught:
        parse_overrides(["height=x", "width=512", "colour=red"])
    assert [wrong.field for wrong in caught.value.fields] == ["height", "colour"]


@pytest.mark.parametrize(
    "pairs",
    [["max_side=256"], ["height=500"], ["max_steps=10"], ["max_images=0"], ["side_multiple=0"], ["side_multiple=12"]],
)
def test_defaults_that_the_limits_forbid_are_refused(pairs: list[str]) -> None:
    with pytest.raises(InvalidFields):
        parse_overrides(pairs).apply(Defaults())

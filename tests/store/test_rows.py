"""Reading what an older or newer version wrote."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from safelight.deployments import Defaults, Limits, Serving
from safelight.runs import LoraUse, OutputFormat, RunParams, SamplerName
from safelight.store.rows import from_json, to_json


def test_unknown_keys_are_ignored_and_missing_ones_take_their_defaults() -> None:
    text = json.dumps({"prompt": "a house", "steps_of_a_newer_version": 3, "sampler": "ddim"})
    assert from_json(RunParams, text) == RunParams(prompt="a house", sampler=SamplerName.DDIM)
    assert from_json(Limits, '{"max_images": 2}') == Limits(max_images=2)


@given(
    st.builds(
        RunParams,
        prompt=st.text(st.characters()),
        guidance_scale=st.floats(0, 50),
        seed=st.integers(0, 2**53 - 1),
        sampler=st.sampled_from(SamplerName),
        output_format=st.sampled_from(OutputFormat),
    )
)
def test_what_is_written_is_read(params: RunParams) -> None:
    assert from_json(RunParams, to_json(params)) == params
    assert to_json(params).isascii()


def test_loras_come_back_as_they_were() -> None:
    params = RunParams(prompt="x", loras=(LoraUse("lego", 0.5), LoraUse("ink")))
    assert from_json(RunParams, to_json(params)) == params
    serving = Serving(lora_files=(("lego", "/loras/lego.safetensors"),))
    assert from_json(Serving, to_json(serving)) == serving
    assert serving.loras == ("lego",)


def test_defaults_come_back_with_their_enums() -> None:
    defaults = Defaults(sampler=SamplerName.DPMPP_2M, output_format=OutputFormat.JPEG)
    read = from_json(Defaults, to_json(defaults))
    assert read == defaults and isinstance(read.sampler, SamplerName) and isinstance(read.output_format, OutputFormat)

"""The parser of the predict body: what it takes, what it refuses, and that nothing else ever comes out of it."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.api.dialects import native
from safelight.api.params import FRESH_SEEDS, complete, find_wrong
from safelight.deployments import Defaults, Deployment, Limits, Serving
from safelight.errors import BodyTooLarge, MalformedBody
from safelight.runs import MAX_SEED, ImageRecord, LoraUse, OutputFormat, Run, RunParams, RunStatus, SamplerName

from .house import EXAMPLE_BODY

DEPLOYMENT = Deployment(name="pinhole", version=1, model="stable-diffusion", defaults=Defaults(width=640))


def read(**body: object):
    return native.to_params({"prompt": "x", **body})


def wrong_fields(**body: object) -> dict[str, str]:
    asked = read(**body)
    params = complete(asked, DEPLOYMENT, fresh_seed=7)
    errors = find_wrong(asked, params, DEPLOYMENT)
    found = {error.field: error.message for error in errors}
    assert len(found) == len(errors), "one entry per field"
    return found


def test_the_pages_own_request_is_read_word_for_word():
    asked = native.to_params(
        native.parse_body(json.dumps(EXAMPLE_BODY | {"webhook_endpoint": "https://y.com"}).encode())
    )
    params = complete(asked, DEPLOYMENT, fresh_seed=7)
    assert params == RunParams(
        prompt=EXAMPLE_BODY["prompt"],
        negative_prompt="no sky",
        height=768,
        width=512,
        num_inference_steps=60,
        guidance_scale=8.0,
        num_images_per_prompt=2,
        seed=7,
    )
    assert asked.webhook_endpoint == "https://y.com"
    assert asked.wrong == () and asked.unknown_keys == ()


def test_what_is_absent_or_null_is_the_deployments_default():
    for asked in (read(), read(**dict.fromkeys(("width", "height", "seed", "sampler", "negative_prompt")))):
        params = complete(asked, DEPLOYMENT, fresh_seed=9)
        assert (params.width, params.height, params.seed) == (640, 512, 9)
        assert (params.num_inference_steps, params.guidance_scale, params.num_images_per_prompt) == (50, 7.5, 1)


@pytest.mark.parametrize("value", [768, 768.0, "768", " 768 ", "+768", "768.0", "768.", 7.68e2])
def test_whole_numbers_are_taken_in_every_spelling_of_the_era(value):
    assert read(height=value).height == 768
    assert type(read(height=value).height) is int


@pytest.mark.parametrize("value", [True, False, "abc", "", "1_000", "٧٦٨", "0x10", [512], {"a": 1}, "5e2", "nan"])
def test_what_is_no_whole_number_is_refused_with_the_value(value):
    (message,) = wrong_fields(height=value).values()
    assert "is not a whole number" in message
    assert json.dumps(value)[:10].strip('"') in message


def test_a_fraction_names_the_nearest_whole_number():
    assert wrong_fields(num_inference_steps=20.4) == {
        "num_inference_steps": "20.4 is not a whole number; the nearest is 20"
    }


@pytest.mark.parametrize(
    ("value", "expected"), [(8, 8.0), ("8", 8.0), ("7.5", 7.5), (".5", 0.5), ("1e1", 10.0), (0, 0)]
)
def test_guidance_is_any_finite_number(value, expected):
    guidance = read(guidance_scale=value).guidance_scale
    assert guidance == expected and type(guidance) is float


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", True, "7,5", [], "1e999", "9" * 301, 1e999, "1__0"])
def test_guidance_that_is_not_finite_is_refused(value):
    assert "is not a finite number" in wrong_fields(guidance_scale=value)["guidance_scale"]


@pytest.mark.parametrize(
    "digits", ["1" + "0" * 299, "9" * 5000, "-" + "9" * 60_000, "1e400", "1E+99999", "-1e999999999"]
)
@pytest.mark.parametrize("field", ["height", "seed", "guidance_scale", "num_images_per_prompt", "nobody_asked"])
def test_numbers_of_any_length_are_answered_and_never_explode(field, digits):
    body = native.parse_body(f'{{"prompt": "x", "{field}": {digits}}}'.encode())
    asked = native.to_params(body)
    params = complete(asked, DEPLOYMENT, fresh_seed=1)
    errors = find_wrong(asked, params, DEPLOYMENT)
    is_negative_seed = field == "seed" and digits.startswith("-") and not errors
    assert is_negative_seed or field == "nobody_asked" or [error.field for error in errors] == [field]
    assert sum(len(error.message) for error in errors) < 2000


def test_a_seed_is_drawn_where_none_was_named():
    for seed in (None, -1, "-5", -1.0):
        assert read(seed=seed).seed is None
    assert read(seed=0).seed == 0
    assert read(seed="42").seed == 42
    assert FRESH_SEEDS == 2**32


def test_every_seed_of_a_run_is_exact_in_json():
    assert wrong_fields(seed=MAX_SEED) == {}
    (message,) = wrong_fields(seed=MAX_SEED, num_images_per_prompt=3).values()
    assert message.endswith(f"the nearest is {MAX_SEED - 2}")
    assert "seed" in wrong_fields(seed=2**53)


def test_names_are_taken_in_any_case_and_others_are_refused_with_the_choice():
    assert read(sampler=" Euler ", output_format="JPEG").sampler is SamplerName.EULER
    assert read(output_format="JPEG").output_format is OutputFormat.JPEG
    assert wrong_fields(sampler="huen")["sampler"].startswith('"huen" is not one of euler, ')
    assert wrong_fields(sampler="huen")["sampler"].endswith("; the nearest is heun")
    assert wrong_fields(spacing=["karras"])["spacing"].startswith('["karras"] is not one of automatic, ')
    assert "png, jpeg, webp" in wrong_fields(output_format=3)["output_format"]


def test_deterministic_is_true_or_false_and_nothing_else():
    asked = [read(deterministic=value).deterministic for value in (True, False, "TRUE", " false", None)]
    assert asked == [True, False, True, False, None]
    assert complete(read(deterministic=True), DEPLOYMENT, fresh_seed=1).deterministic
    assert wrong_fields(deterministic=1)["deterministic"] == "1 is not true or false"


@pytest.mark.parametrize("prompt", [None, 3, ["a"], {"text": "a"}, True, "a\0b", "half \ud83d"])
def test_a_prompt_that_is_no_text_is_refused(prompt):
    assert list(wrong_fields(prompt=prompt)) == ["prompt"]


def test_a_missing_prompt_is_refused_and_an_empty_one_is_not():
    assert [error.field for error in native.to_params({}).wrong] == ["prompt"]
    assert wrong_fields(prompt="") == {}


def test_the_model_may_be_named_if_it_is_the_deployments_own():
    for name in ("stable-diffusion", "stabilityai/stable-diffusion-2-1", "StabilityAI/Stable-Diffusion-2-1"):
        assert wrong_fields(hf_model_path=name, model_id=name) == {}
    found = wrong_fields(hf_model_path="runwayml/stable-diffusion-v1-5", model_id=5)
    assert "is not the model of pinhole" in found["hf_model_path"]
    assert found["model_id"] == "5 is not a string"


def test_a_token_is_dropped_and_other_unknown_keys_are_listed():
    asked = read(hf_token="hf_secretsecret", scheduler="x", foo=None)
    assert asked.unknown_keys == ("scheduler", "foo")
    assert "hf_secret" not in repr(asked)
    with_token = native.digest("a", {"prompt": "x", "hf_token": "hf_secretsecret"})
    assert with_token == native.digest("a", {"prompt": "x"}) != native.digest("b", {"prompt": "x"})


def test_the_digest_is_of_what_was_said_and_not_of_how():
    first, second = b'{"prompt": "a", "width": 8}', b'{ "width":8,"prompt":"\\u0061" }'
    assert native.digest("d", native.parse_body(first)) == native.digest("d", native.parse_body(second))


def test_every_wrong_field_is_named_at_once():
    found = wrong_fields(prompt=1, height=500, width=True, num_inference_steps=0, guidance_scale=-1, seed="x")
    assert sorted(found) == ["guidance_scale", "height", "num_inference_steps", "prompt", "seed", "width"]
    assert found["height"].endswith("the nearest is 504")


def test_a_url_of_any_length_is_not_taken():
    assert "too many" in wrong_fields(webhook_endpoint="https://a.b/" + "c" * 3000)["webhook_endpoint"]


NO_OBJECTS = [
    b"",
    b" ",
    b"nope",
    b"[]",
    b'"x"',
    b"3",
    b"null",
    b"{",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
]
NO_OBJECTS += [b'{"prompt": "\xff\xfe"}', b"\xff", b"{'a': 1}", b'{"a": 1,}', b'{"a": 01}', '{"a": 1}'.encode("utf-16")]


@pytest.mark.parametrize("body", NO_OBJECTS)
def test_what_is_no_json_object_is_malformed(body):
    with pytest.raises(MalformedBody):
        native.parse_body(body)


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000, b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"])
def test_deep_nesting_is_malformed(body):
    with pytest.raises(MalformedBody):
        native.parse_body(body)


def test_brackets_inside_of_text_are_no_nesting():
    prompt = '[[[["{{{{' * 100
    assert native.parse_body(json.dumps({"prompt": prompt}).encode()) == {"prompt": prompt}
    assert native.parse_body(b'{"a": [' + b"[]," * 100 + b"1]}")["a"][0] == []


def test_of_a_key_that_comes_twice_the_last_counts():
    assert native.parse_body(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 2}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
FIELDS = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "num_images_per_prompt", "seed")
FIELDS += ("negative_prompt", "webhook_endpoint", "sampler", "spacing", "output_format")
FIELDS += ("hf_model_path", "model_id", "hf_token", "deterministic")
NEAR = st.sampled_from(
    [0, 1, 7, 8, 64, 512, "512", 512.0, 1024, 1032, -1, 1e999, "1e5", True, None, "euler", "png", "x"]
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_malformed(body):
    with contextlib.suppress(MalformedBody):
        assert isinstance(native.parse_body(body), dict)


BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON | NEAR, max_size=len(FIELDS))
LIMITS = st.builds(Limits, max_side=st.sampled_from([64, 512, 1024]), max_steps=st.integers(1, 150))


@settings(max_examples=250, deadline=None)
@given(BODIES, LIMITS)
def test_what_is_accepted_is_within_the_limits_whatever_was_sent(body, limits):
    assert_refused_or_within(body, limits)


def assert_refused_or_within(body, limits) -> bool:
    """Whether `body` was accepted."""
    deployment = Deployment(name="d", version=1, model="pinhole", limits=limits)
    asked = native.to_params(body)
    params = complete(asked, deployment, fresh_seed=2**32 - 1)
    errors = find_wrong(asked, params, deployment)
    for error in errors:
        assert error.message and "\n" not in error.message and len(error.message) < 1000
        error.message.encode()
    if errors:
        return False
    assert_within(params, limits)
    return True


def assert_within(params: RunParams, limits: Limits) -> None:
    """Nothing of `params` is over a limit, and all of it is of its type."""
    assert type(params.height) is int and 64 <= params.height <= limits.max_side and params.height % 8 == 0
    assert type(params.width) is int and 64 <= params.width <= limits.max_side and params.width % 8 == 0
    assert params.height * params.width <= limits.max_pixels
    assert type(params.num_inference_steps) is int and 1 <= params.num_inference_steps <= limits.max_steps
    assert type(params.num_images_per_prompt) is int and 1 <= params.num_images_per_prompt <= limits.max_images
    assert math.isfinite(params.guidance_scale) and 0 <= params.guidance_scale <= limits.max_guidance_scale
    assert 0 <= params.seeds[0] <= params.seeds[-1] <= MAX_SEED
    assert len(params.prompt) <= limits.max_prompt_chars
    (params.prompt + params.negative_prompt).encode()


def test_the_answer_has_seeds_and_warnings_that_fit_a_header():
    run = Run(
        id="r",
        project="p",
        key_id=None,
        deployment="d",
        deployment_version=1,
        params=RunParams(prompt="x"),
        status=RunStatus.SUCCEEDED,
        created_at=0.0,
        run_time_ms=1.5,
        warnings=('cut: "größe"\r\nX-Evil: 1 \\', "second"),
        images=tuple(
            ImageRecord(index=i, seed=5 + i, output_format=OutputFormat.PNG, path="", num_bytes=1, sha256="")
            for i in range(2)
        ),
    )
    answer = native.from_run(run, [b"a", b"b"])
    assert answer.headers == (
        ("X-Safelight-Run-Id", "r"),
        ("X-Safelight-Seed", "5, 6"),
        ("Warning", r'299 safelight "cut: \"gr??e\"??X-Evil: 1 \\"'),
        ("Warning", '299 safelight "second"'),
    )
    assert json.loads(answer.body) == {
        "run_id": "r",
        "run_time_ms": 1.5,
        "message": "Successfully generated images",
        "result": ["YQ==", "Yg=="],
    }


def test_loras_are_read_and_must_be_the_deployments():
    known = replace(DEPLOYMENT, serving=Serving(lora_files=(("lego", "/x"), ("ink", "/y"))))
    asked = read(loras=[{"name": "lego", "scale": "0.5"}, {"name": "ink"}])
    params = complete(asked, known, fresh_seed=7)
    assert params.loras == (LoraUse("lego", 0.5), LoraUse("ink", 1.0))
    assert find_wrong(asked, params, known) == ()
    assert wrong_fields(loras=[{"name": "lego"}]) == {"loras": '"lego" is no LoRA of pinhole: it has none'}
    [error] = find_wrong(read(), complete(read(loras=[{"name": "lge"}]), known, fresh_seed=7), known)
    assert error.message.endswith("it has lego, ink")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("lego", "is not a list of at most 8 objects"),
        ([{"name": "x"}] * 9, "is not a list of at most 8"),
        (["lego"], "is not an object with name and scale"),
        ([{"scale": 1}], "is not an object with name and scale"),
        ([{"name": "x", "weight": 1}], "and nothing else"),
        ([{"name": 1}], "is not a string"),
        ([{"name": "x", "scale": 11}], "is not between -10.0 and 10.0"),
        ([{"name": "x", "scale": True}], "is not a finite number"),
        ([{"name": "x"}, {"name": "x"}], "names a LoRA twice"),
    ],
)
def test_loras_of_another_shape_are_refused(value: object, rule: str):
    assert rule in wrong_fields(loras=value)["loras"]


@pytest.mark.parametrize("tail", ['\\"', "\\\\", '"', "\\"])
def test_a_string_that_never_ends_is_read_once_and_refused(tail: str):
    # Read again from each of its quotes, this would take hours.
    with pytest.raises(MalformedBody, match=r"levels deep|is not JSON"):
        native.parse_body(("[" * 33 + '"' + tail * 500_000).encode())


def test_brackets_in_strings_are_no_depth():
    prompt = '[[a \\ "house"]]' * 20
    assert native.parse_body(json.dumps({"prompt": prompt, "x": [[[1]]]}).encode())["prompt"] == prompt


@pytest.mark.parametrize(
    ("body", "is_taken"),
    [
        (b'{"init_image": "' + b"A" * 2000 + b'", "x": 1}', True),
        (b'{"mask" : "' + b"A\\/" * 700 + b'", "init_image":"' + b"A" * 2000 + b'"}', True),
        (b'{"init_image": "", "x": [' + b"[]," * 700 + b"[]]}", False),
        (b'{"x": [' + b'{"mask": ""},' * 700 + b"1]}", False),
        (b'{"x": "' + b'\\"init_image\\": \\"' * 200 + b'"}', False),
        (b'{"init_image": "' + b"A" * 2000, False),
    ],
)
def test_what_is_beside_the_pictures_is_measured_before_it_is_parsed(body: bytes, is_taken: bool):
    with contextlib.nullcontext() if is_taken else pytest.raises(BodyTooLarge):
        native.check_size(body, max_bytes=1024)

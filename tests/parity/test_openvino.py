"""What OpenVINO compiles answers as torch does, whatever the number of rows; what it was not compiled
for, torch answers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import safelight
from safelight.engine.models.forwards import Compiler, Forward
from safelight.engine.models.loading import ModelLoader, load_model, open_compiler
from safelight.engine.models.openvino import Compiled, _UNet, cheapest_parts
from safelight.engine.tuning import Tuning
from safelight.errors import ModelError
from safelight.runs import RunParams

from .calls import SIDE, Call, random_call
from .conftest import Pair
from .drawing import draw_with_engine, largest_difference

pytest.importorskip("openvino")

PINHOLE = Path(safelight.__file__).parent / "pinhole"

BFLOAT16_TOLERANCE = 0.05
"""In units of the output's largest value: one forward pass in bfloat16 against float32."""


@pytest.fixture(autouse=True, scope="module")
def few_sizes_in_a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("safelight.engine.models.openvino.MAX_ROWS", 2)
        patch.setattr("safelight.engine.models.openvino.PROBE_SECONDS", 0.0)
        yield


def compiler(dtype: torch.dtype = torch.float32) -> Compiler:
    made = open_compiler("openvino", Tuning(torch.device("cpu"), dtype, 1))
    assert made is not None
    return made


def compiled(pair: Pair, dtype: torch.dtype) -> tuple[UNet2DConditionModel, Forward]:
    unet = load_model(pair.folder, dtype=dtype)._parts.unet
    one = random_call(unet, 1)
    return unet, compiler(dtype).unet(unet, one.x, one.timestep, **one.inputs)


def test_rows_are_as_torch_has_them(tiny_v2: Pair) -> None:
    unet, ours = compiled(tiny_v2, torch.float32)
    call = random_call(unet, 5)
    assert ours is not unet
    torch.testing.assert_close(call.of(ours, *range(5)), call.of(unet, *range(5)), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_near_float32_and_a_row_is_the_same_bits_with_any_neighbours(tiny_xl: Pair) -> None:
    _, ours = compiled(tiny_xl, torch.bfloat16)
    call = random_call(tiny_xl.ours._parts.unet, 5)
    truth, together = call.of(tiny_xl.ours._parts.unet, *range(5)), call.of(ours, *range(5))
    assert (together - truth).abs().max() < BFLOAT16_TOLERANCE * truth.abs().max()
    for rows in ((0,), (3, 1), (4, 2, 1)):
        assert torch.equal(call.of(ours, *rows), together[list(rows)])


def test_another_size_runs_in_torch(tiny_v1: Pair) -> None:
    unet = tiny_v1.ours._parts.unet
    call = random_call(unet, 2)
    compiled = Compiled(_UNet(unet), (call.x[:1], call.timestep[:1]), {k: v[:1] for k, v in call.inputs.items()})
    wide = Call(torch.cat([call.x, call.x], dim=-1), call.timestep, call.inputs)
    assert torch.equal(wide.of(compiled, 0, 1), wide.of(unet, 0, 1))


def test_a_decoder_draws_the_same_picture(tiny_v1: Pair) -> None:
    vae: AutoencoderKL = tiny_v1.ours._parts.vae
    latent = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    ours = compiler().decoder(vae, torch.zeros_like(latent))
    with torch.inference_mode():
        theirs = vae.decode(latent, return_dict=False)[0]
    assert ours != vae.decode
    torch.testing.assert_close(ours(latent, return_dict=False)[0], theirs, atol=1e-3, rtol=1e-3)


def test_a_loaded_model_draws_the_same_pictures_at_its_size_and_at_another() -> None:
    loader = ModelLoader(device="cpu", dtype="float32", num_threads=1, backend="openvino")
    loader.prepare()
    asked = [
        RunParams(prompt="a red circle", height=height, width=512, num_inference_steps=2, seed=number)
        for number, height in enumerate((512, 256))
    ]
    compiled, plain = loader.compile(loader.load(PINHOLE)), load_model(PINHOLE)
    native, other = (plain.latent_shape(height, 512) for height in (512, 256))
    assert compiled.backend_of(native).startswith("openvino 20")
    assert {compiled.backend_of(other), plain.backend_of(native)} == {"torch"}
    assert compiled.backend_of(native, num_windows=2).startswith("torch (denoiser), openvino")
    ours, theirs = (draw_with_engine(model, asked) for model in (compiled, plain))
    for drawn, expected in zip(ours, theirs, strict=True):
        assert largest_difference(drawn, expected) <= 1


def test_what_cannot_be_converted_runs_in_torch(tiny_v1: Pair, caplog: pytest.LogCaptureFixture) -> None:
    vae = tiny_v1.ours._parts.vae
    with caplog.at_level(logging.WARNING):
        assert compiler().decoder(vae, torch.zeros(1, 3, SIDE, SIDE)) == vae.decode
    assert "the decoder runs in torch: OpenVINO cannot take it" in caplog.text


def test_what_is_not_faster_runs_in_torch(tiny_v1: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.engine.models.openvino.MIN_GAIN", 1000.0)
    vae = tiny_v1.ours._parts.vae
    measuring = open_compiler("auto", Tuning(torch.device("cpu"), torch.float32, 1))
    assert measuring is not None
    assert measuring.decoder(vae, torch.zeros(1, 4, SIDE, SIDE)) == vae.decode


def test_a_backend_that_cannot_be_had_is_said() -> None:
    on_gpu = Tuning(torch.device("cuda:0"), torch.bfloat16, 1)
    with pytest.raises(ModelError, match=r"set engine\.backend to auto for cuda:0 in bfloat16"):
        open_compiler("openvino", on_gpu)


def test_a_backend_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    here = Tuning(torch.device("cpu"), torch.float32, 1)
    assert open_compiler("auto", here) is None
    with pytest.raises(ModelError, match=r"pip install 'safelight\[openvino\]'"):
        open_compiler("openvino", here)


@pytest.mark.parametrize(
    ("seconds", "num_rows", "parts"),
    [
        ({1: 1.0, 2: 1.8, 4: 3.4}, 7, (4, 2, 1)),
        ({1: 1.0, 2: 1.1, 4: 1.3}, 3, (4,)),
        ({1: 1.0, 2: 1.1, 4: 1.3}, 9, (4, 4, 1)),
        ({1: 1.0}, 3, (1, 1, 1)),
    ],
)
def test_rows_travel_in_the_parts_that_take_least(
    seconds: dict[int, float], num_rows: int, parts: tuple[int, ...]
) -> None:
    assert cheapest_parts(num_rows, seconds) == parts


def test_openvino_reports_to_nobody():
    probe = (
        "import sys, torch; from safelight.engine.models.openvino import OpenVINO;"
        " from safelight.engine.tuning import Tuning;"
        "OpenVINO(Tuning(torch.device('cpu'), torch.float32, 1));"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

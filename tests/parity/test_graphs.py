"""CUDA graphs without a GPU: a capture that calls the network again into the same buffers stands in for
the device's."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from safelight.engine.engine import Engine
from safelight.engine.models import graphs
from safelight.engine.models.blocks import compile_blocks
from safelight.engine.models.graphs import BUCKETS, CAPTURE_AT, MAX_ROWS_ALONE, GraphCompiler, Graphed
from safelight.engine.models.loading import load_model, open_compiler
from safelight.engine.tuning import Tuning
from safelight.errors import ModelError
from safelight.runs import LoraUse, RunParams

from .calls import random_call
from .conftest import Pair
from .drawing import draw_with_engine, largest_difference
from .lora_files import make_layers, save_peft
from .replays import Replays

NUM_CHANNELS, NUM_TOKENS, WIDTH = 4, 3, 5


class TinyUNet(torch.nn.Module):
    """Called as a UNet is; each row's answer hangs on all of the row's inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(NUM_CHANNELS, NUM_CHANNELS, 3, padding=1)
        self.text = torch.nn.Linear(WIDTH, NUM_CHANNELS)
        self.seen = torch.empty(0)

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, *, return_dict: bool, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor]:
        self.seen = x
        heard = self.text(encoder_hidden_states).mean(1) * timestep[:, None].cos()
        return (self.conv(x) + heard[:, :, None, None],)


@torch.inference_mode()
def call(network: Any, num_rows: int, side: int = 8, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, NUM_CHANNELS, side, side, generator=generator).to(memory_format=torch.channels_last)
    timestep = torch.linspace(3, 997, num_rows)
    hidden = torch.randn(num_rows, NUM_TOKENS, WIDTH, generator=generator)
    out: torch.Tensor = network(x, timestep, return_dict=False, encoder_hidden_states=hidden)[0]
    return out


def captured(capture: Replays, *asked: tuple[int, int]) -> tuple[TinyUNet, Any]:
    """A network, and the same behind graphs, captured for these rows and sides."""
    unet = TinyUNet()
    graphed = GraphCompiler(capture.open).unet(unet)
    for num_rows, side in asked:
        for _ in range(CAPTURE_AT):
            call(graphed, num_rows, side)
    capture.rows.clear()
    return unet, graphed


def test_rows_travel_in_the_next_larger_bucket_and_come_out_as_torch_has_them() -> None:
    capture = Replays()
    unet, graphed = captured(capture, *((rows, 8) for rows in BUCKETS))
    for num_rows in range(1, 10):
        expected = call(unet, num_rows)
        torch.testing.assert_close(call(graphed, num_rows), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(unet.seen[num_rows:], unet.seen[num_rows - 1].expand_as(unet.seen[num_rows:])), "the last"
    assert capture.rows == [1, 2, 3, 4, 6, 6, 8, 8, 12]
    assert capture.num_tries == len(BUCKETS)


def test_a_shape_is_captured_once_it_has_come_a_few_times() -> None:
    capture = Replays()
    _, graphed = captured(capture, (2, 8))
    for _ in range(CAPTURE_AT - 1):
        call(graphed, 2, 16)
    assert capture.num_tries == 1
    call(graphed, 2, 16)
    assert capture.num_tries == 2
    call(graphed, BUCKETS[-1] + 1)
    assert capture.num_tries == 2


def test_an_answer_is_the_callers_own() -> None:
    _, graphed = captured(Replays(), (2, 8))
    first = call(graphed, 2)
    kept = first.clone()
    assert not torch.equal(call(graphed, 2, seed=2), kept)
    assert torch.equal(first, kept)


def test_graphs_over_weights_that_have_moved_are_dropped() -> None:
    capture = Replays()
    unet, graphed = captured(capture, (2, 8), (4, 8))
    unet.text.weight.data = unet.text.weight.data.clone()
    call(graphed, 2)
    assert capture.rows == []
    for _ in range(CAPTURE_AT):
        call(graphed, 2)
    assert capture.num_tries == 3 and capture.rows


def test_the_least_recently_used_graph_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    capture = Replays()
    _, graphed = captured(capture, (1, 8), (2, 8))
    call(graphed, 1)
    for _ in range(CAPTURE_AT):
        call(graphed, 3)
    capture.rows.clear()
    call(graphed, 2)
    assert capture.rows == []
    call(graphed, 1)
    assert capture.rows == [1]


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (Replays(error=torch.OutOfMemoryError("no memory left")), "no memory left"),
        (Replays(offset=0.3), "its answer is not torch's"),
    ],
)
def test_what_cannot_be_captured_stays_in_torch(
    capture: Replays, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        unet, graphed = captured(capture, (2, 8), (2, 8))
    assert torch.equal(call(graphed, 2), call(unet, 2))
    assert capture.num_tries == 1 and capture.rows == []
    assert f"stay in torch: no CUDA graph ({reason})" in caplog.text


def test_graphs_that_were_dropped_are_captured_again_into_memory_of_their_own() -> None:
    capture = Replays()
    _, graphed = captured(capture, (2, 8), (4, 8))
    num_opened = capture.num_opened
    assert graphed.release() and not graphed.release()
    for _ in range(CAPTURE_AT):
        call(graphed, 2)
    assert capture.num_tries == 3 and capture.num_opened == num_opened + 1


def test_the_graphs_of_one_network_are_no_other_ones() -> None:
    capture = Replays()
    compiler = GraphCompiler(capture.open)
    one, other = compiler.unet(TinyUNet()), compiler.unet(TinyUNet())
    for _ in range(CAPTURE_AT):
        call(one, 2)
        call(other, 2)
    assert capture.num_opened >= 2
    assert isinstance(one, Graphed) and one.release()
    capture.rows.clear()
    call(other, 2)
    assert capture.rows == [2]


def test_where_one_image_travels_a_graph_answers_bit_for_bit_or_not_at_all() -> None:
    capture = Replays(offset=1e-5)
    _, graphed = captured(capture, *((rows, 8) for rows in BUCKETS))
    for rows in BUCKETS:
        call(graphed, rows)
    assert capture.rows == list(BUCKETS[BUCKETS.index(MAX_ROWS_ALONE) + 1 :])


def test_a_model_that_is_unloaded_gives_the_memory_of_its_graphs_back(tiny_v1: Pair) -> None:
    capture, model = Replays(), load_model(tiny_v1.folder)
    model = model.compiled(GraphCompiler(capture.open))
    params = RunParams(prompt="a red cat", height=32, width=32, num_inference_steps=CAPTURE_AT)
    draw_with_engine(model, [params])
    assert capture.num_tries == 1
    engine = Engine()
    engine.load("model", model)
    engine.unload("model")
    assert not model.release(), "there is nothing left"


def test_a_model_draws_the_same_by_graphs_and_with_a_lora_without_them(tiny_v1: Pair, tmp_path: Path) -> None:
    capture, model = Replays(), load_model(tiny_v1.folder)
    model.register_loras({"lora": save_peft(make_layers(tiny_v1.theirs, 1), tmp_path / "lora.safetensors")})
    asked = RunParams(prompt="a red cat", height=32, width=32, num_inference_steps=CAPTURE_AT + 1, seed=5)
    changed = replace(asked, loras=(LoraUse("lora", 1.0),))
    theirs = {params: draw_with_engine(model, [params])[0] for params in (asked, changed)}
    model = model.compiled(GraphCompiler(capture.open))
    native = model.latent_shape(32, 32)
    assert model.backend_of(native, num_windows=2) == "cuda graphs (denoiser), torch (decoder)"
    assert model.adapted(changed.loras).backend_of(native) == "torch"
    for params, is_by_graphs in ((asked, True), (changed, False), (asked, True)):
        capture.rows.clear()
        [ours] = draw_with_engine(model, [params])
        assert largest_difference(ours, theirs[params]) <= 1
        assert bool(capture.rows) == is_by_graphs


def test_compiled_blocks_answer_as_torch_and_are_not_compiled_when_a_run_comes() -> None:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    one, some = random_call(unet, 1), random_call(unet, 3)
    compiled = compile_blocks(unet, (one.x, one.timestep), one.inputs, rows=(2,), compiler="eager")
    num_compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled is not unet and num_compiled > 0
    for rows in ((0, 1), (0,), (0, 1, 2)):
        torch.testing.assert_close(some.of(compiled, *rows), some.of(unet, *rows), atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_compiled
    # The weights are the same, wherever they go.
    for weight in unet.parameters():
        weight.data = 0.5 * weight.data
    torch.testing.assert_close(some.of(compiled, 0, 1), some.of(unet, 0, 1), atol=1e-5, rtol=1e-5)


def test_without_a_compiler_blocks_run_as_they_were(tiny_v1: Pair, caplog: pytest.LogCaptureFixture) -> None:
    unet = tiny_v1.ours._parts.unet
    one = random_call(unet, 1)
    with caplog.at_level(logging.WARNING):
        assert compile_blocks(unet, (one.x, one.timestep), one.inputs, rows=(1,), compiler="none such") is unet
    assert "the UNet's blocks are not compiled: torch.compile cannot take them" in caplog.text


def test_gpus_have_graphs_unless_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.engine.models.loading.CudaCapture", lambda device: Replays())
    on_gpu, on_cpu = (Tuning(torch.device(name), torch.bfloat16, 1) for name in ("cuda:0", "cpu"))
    assert isinstance(open_compiler("auto", on_gpu), GraphCompiler)
    assert open_compiler("torch", on_gpu) is None
    with pytest.raises(ModelError, match=r"engine\.backend graphs is for GPUs; set engine\.backend to auto for cpu"):
        open_compiler("graphs", on_cpu)

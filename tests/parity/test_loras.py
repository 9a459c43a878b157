"""LoRAs draw what diffusers with PEFT draws, come and go between two steps, and are refused where they
do not belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from safelight.engine.engine import Engine
from safelight.engine.events import AssignmentFailed, ImageReady
from safelight.engine.models.loading import load_model
from safelight.engine.tasks import Assignment
from safelight.errors import ModelError
from safelight.families import check_lora
from safelight.runs import LoraUse, RunParams

from .conftest import Pair
from .drawing import draw_with_diffusers, draw_with_engine, largest_difference
from .lora_files import RANK, Layers, make_layers, merged_text, of_unet, save_kohya, save_old, save_peft

PLAIN = RunParams(
    prompt="a red cat on mars", negative_prompt="snow", height=40, width=32, num_inference_steps=3, seed=5
)


def fresh(folder: Path, is_xl: bool) -> DiffusionPipeline:
    """A pipeline of its own: PEFT rewrites the networks it changes."""
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["tiny_v1", "tiny_v2", "tiny_xl"])
def pair(request: pytest.FixtureRequest) -> Pair:
    tiny: Pair = request.getfixturevalue(request.param)
    return Pair(tiny.folder, fresh(tiny.folder, request.param == "tiny_xl"), load_model(tiny.folder))


ALPHA = 2.0


def layers_of(pair: Pair) -> dict[str, Layers]:
    attention = {key: each for key, each in make_layers(pair.theirs, 3, has_text=False).items() if ".to_" in key[1]}
    return {"peft": make_layers(pair.theirs, 1), "kohya": make_layers(pair.theirs, 2), "old": attention}


def write(layers: Mapping[str, Layers], folder: Path, pair: Pair) -> dict[str, Path]:
    folder.mkdir()
    is_ldm = hasattr(pair.theirs, "text_encoder_2")
    kohya = folder / "kohya.safetensors"
    return {
        "peft": save_peft(layers["peft"], folder / "peft.safetensors"),
        "kohya": save_kohya(layers["kohya"], kohya, pair.theirs, alpha=ALPHA, is_ldm=is_ldm),
        "old": save_old(layers["old"], folder / "old.safetensors"),
    }


def test_pictures_are_those_of_diffusers_and_peft(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(pair)
    pair.ours.register_loras(write(layers, tmp_path / "ours", pair))
    for name, file in write({key: of_unet(each) for key, each in layers.items()}, tmp_path / "theirs", pair).items():
        pair.theirs.load_lora_weights(file, adapter_name=name)
    [plain] = draw_with_engine(pair.ours, [PLAIN])
    strengths = {"peft": 1.0, "kohya": ALPHA / RANK, "old": 1.0}
    for scales in ({"peft": 1.0}, {"kohya": 0.7}, {"old": 1.5}, {"peft": 0.5, "kohya": -0.4, "old": 1.0}):
        pair.theirs.set_adapters(list(scales), list(scales.values()))
        with merged_text(pair.theirs, [(layers[name], scale * strengths[name]) for name, scale in scales.items()]):
            theirs = draw_with_diffusers(pair.theirs, PLAIN, monkeypatch)
        uses = tuple(LoraUse(name, scale) for name, scale in scales.items())
        [ours] = draw_with_engine(pair.ours, [replace(PLAIN, loras=uses)])
        assert largest_difference(ours, theirs) <= 1
        assert largest_difference(ours, plain) > 20
    [again] = draw_with_engine(pair.ours, [PLAIN])
    assert largest_difference(again, plain) == 0


def test_runs_with_other_loras_travel_beside_each_other(tiny_v2: Pair, tmp_path: Path) -> None:
    model = load_model(tiny_v2.folder)
    model.register_loras(write(layers_of(tiny_v2), tmp_path / "loras", tiny_v2))
    asked = [
        PLAIN,
        replace(PLAIN, loras=(LoraUse("peft"),)),
        replace(PLAIN, loras=(LoraUse("peft"),), num_inference_steps=5, seed=9),
        replace(PLAIN, loras=(LoraUse("peft", 0.5),)),
    ]
    together = draw_with_engine(model, asked)
    for params, beside in zip(asked, together, strict=True):
        [alone] = draw_with_engine(model, [params])
        assert largest_difference(beside, alone) <= 1
    assert largest_difference(together[1], together[3]) > 20


def test_a_lora_that_is_not_known_fails_its_run_only(tiny_v2: Pair) -> None:
    engine = Engine()
    engine.load("model", load_model(tiny_v2.folder))
    engine.submit(Assignment("bad", "model", replace(PLAIN, loras=(LoraUse("lost"),)), (0,)))
    engine.submit(Assignment("good", "model", PLAIN, (0,)))
    told: dict[str, object] = {}
    while engine.has_work:
        told |= {run_id: event for run_id, event in engine.step() if isinstance(event, AssignmentFailed | ImageReady)}
    assert isinstance(told["good"], ImageReady)
    failed = told["bad"]
    assert isinstance(failed, AssignmentFailed)
    assert failed.error.code == "lora_failed"


def refusal(pair: Pair, file: Path) -> str:
    model = load_model(pair.folder)
    model.register_loras({"it": file})
    with pytest.raises(ModelError) as refused:
        model.adapted((LoraUse("it"),))
    return refused.value.message


def test_a_lora_for_another_model_is_refused(tiny_v1: Pair, tiny_v2: Pair, tiny_xl: Pair, tmp_path: Path) -> None:
    for other in (tiny_v1, tiny_xl):
        layers = make_layers(other.theirs, 1, has_text=False)
        file = save_peft(layers, tmp_path / "other.safetensors")
        assert "it was made for another model" in refusal(tiny_v2, file)


def test_broken_and_unknown_kinds_are_refused(tiny_v2: Pair, tmp_path: Path) -> None:
    layers = make_layers(tiny_v2.theirs, 1, has_text=False)
    file = save_peft(layers, tmp_path / "it.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"unet.conv_in.hada_w1_a": torch.zeros(1)}, file)
    assert "which no LoRA that this version knows has" in refusal(tiny_v2, file)
    save_file({name: each for name, each in tensors.items() if "to_q.lora_B" not in name}, file)
    assert "holds only a part of the layer" in refusal(tiny_v2, file)
    save_file(tensors, file, metadata={"lora_adapter_metadata": '{"unet.use_dora": true}'})
    assert "DoRA, which is not supported" in refusal(tiny_v2, file)
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in refusal(tiny_v2, file)


def test_stated_alphas_count(tiny_v2: Pair, tmp_path: Path) -> None:
    layers = make_layers(tiny_v2.theirs, 1, has_text=False)
    stated = '{"unet.lora_alpha": 8, "unet.r": 4}'
    plain = save_peft(layers, tmp_path / "plain.safetensors")
    save_file(load_file(plain), tmp_path / "stated.safetensors", metadata={"lora_adapter_metadata": stated})
    assert RANK == 4
    model = load_model(tiny_v2.folder)
    model.register_loras({"plain": plain, "stated": tmp_path / "stated.safetensors"})
    doubled, stated_twice = draw_with_engine(
        model, [replace(PLAIN, loras=(LoraUse("plain", 2.0),)), replace(PLAIN, loras=(LoraUse("stated"),))]
    )
    assert largest_difference(doubled, stated_twice) <= 1


def test_deploying_tells_families_apart(tiny_v1: Pair, tiny_xl: Pair, tmp_path: Path) -> None:
    file = save_peft(make_layers(tiny_xl.theirs, 1), tmp_path / "xl.safetensors")
    check_lora(file, model=tiny_xl.folder)
    with pytest.raises(
        ModelError, match=r"was made for a model that listens to text of width 192; this model is .* 48"
    ):
        check_lora(file, model=tiny_v1.folder)
    with pytest.raises(ModelError, match="is no LoRA"):
        check_lora(tiny_v1.folder / "unet" / "diffusion_pytorch_model.safetensors", model=None)

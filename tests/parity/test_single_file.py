"""One checkpoint file draws what the folder it was made from draws; what is no such file is refused with the remedy."""

from __future__ import annotations

import gzip
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from safelight.engine.models import vocabulary
from safelight.engine.models.ldm_shapes import unet_config
from safelight.engine.models.loading import load_model
from safelight.engine.models.single_file import open_single_file
from safelight.engine.models.weights import Component
from safelight.errors import ModelError
from safelight.runs import RunParams

from .drawing import draw_with_engine, largest_difference
from .ldm_files import unet_tensors, write_single_file
from .tiny_models import make_pipeline, write_tokenizer
from .tiny_xl import make_xl_pipeline

ASKED = RunParams(
    prompt="a red cat on mars", negative_prompt="snow", height=40, width=32, num_inference_steps=3, seed=5
)

MAKERS: dict[str, Callable[[Path], object]] = {
    "sd1": lambda folder: make_pipeline(folder, is_v2=False, has_real_heads=True),
    "sd2": lambda folder: make_pipeline(folder, is_v2=True, has_real_heads=True),
    "sdxl": make_xl_pipeline,
}

UNETS = {
    "sd1": {
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "use_linear_projection": False,
        "transformer_layers_per_block": [1, 1, 1, 1],
    },
    "sd2": {
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 1, 1, 1],
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@dataclass(frozen=True)
class Twins:
    """The same weights as a folder and as one file."""

    kind: str
    folder: Path
    file: Path
    pipeline: DiffusionPipeline


@pytest.fixture(scope="module", params=list(MAKERS))
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def old_twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins("sd1", tmp_path_factory.mktemp("old"))


@pytest.fixture
def file(old_twins: Twins, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(old_twins.file.parent / "tokenizer", tmp_path / "tokenizer")
    return Path(shutil.copy(old_twins.file, tmp_path / "mine.safetensors"))


def make_twins(kind: str, place: Path) -> Twins:
    MAKERS[kind](place / "folder")
    pipeline = DiffusionPipeline.from_pretrained(place / "folder", local_files_only=True)
    write_single_file(pipeline, place / "mine.safetensors", **{"model_ema.decay": torch.zeros(())})
    write_tokenizer(place / "tokenizer", pad_token="<|endoftext|>")
    return Twins(kind, place / "folder", place / "mine.safetensors", pipeline)


def test_a_file_draws_what_its_folder_draws(twins: Twins) -> None:
    [theirs], [ours] = (draw_with_engine(load_model(path), [ASKED]) for path in (twins.folder, twins.file))
    assert largest_difference(ours, theirs) == 0


def test_names_are_those_diffusers_finds(twins: Twins) -> None:
    files, stored = open_single_file(twins.file), load_file(twins.file)
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(stored), twins.pipeline.unet.config),
        "vae": convert_ldm_vae_checkpoint(dict(stored), twins.pipeline.vae.config),
    }
    if twins.kind == "sdxl":
        prefix = "conditioner.embedders.1.model."
        encoder = convert_open_clip_checkpoint(twins.pipeline.text_encoder_2, dict(stored), prefix=prefix)
        theirs["text"] = {name.removeprefix("text_model."): each for name, each in encoder.items()}
    ours = {"unet": files.unet, "vae": files.vae, "text": files.text_encoders[-1]}
    for name, expected in theirs.items():
        found = translated(ours[name], stored)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[each].squeeze(), expected[each].squeeze()) for each in expected)


def translated(component: Component, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if place := component.place_of(name):
            whole = tensor.T if place.is_transposed else tensor
            found |= dict(zip(place.names, whole.chunk(len(place.names)), strict=True))
    return found


@pytest.mark.parametrize("kind", list(UNETS))
def test_the_true_sizes_are_read_off_the_shapes(kind: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNETS[kind])
    shapes = {name: tuple(tensor.shape) for name, tensor in unet_tensors(unet).items()}
    summary_width = 1280 if kind == "sdxl" else 0
    found = unet_config(shapes, is_first_family=kind == "sd1", summary_width=summary_width)
    assert found.items() >= UNETS[kind].items()
    assert (
        sum(each.numel() for each in unet.parameters())
        == {
            "sd1": 859_520_964,
            "sd2": 865_910_724,
            "sdxl": 2_567_463_684,
        }[kind]
    )


def test_what_the_denoiser_predicts_is_asked_of_yaml_and_metadata(old_twins: Twins, tmp_path: Path, file: Path) -> None:
    assert not open_single_file(file).schedule.is_v_prediction
    (tmp_path / "mine.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert open_single_file(file).schedule.is_v_prediction
    (tmp_path / "mine.yaml").unlink()
    save_file(load_file(old_twins.file), file, metadata={"modelspec.prediction_type": "v"})
    assert open_single_file(file).schedule.is_v_prediction
    save_file(load_file(old_twins.file) | {"v_pred": torch.zeros(0)}, file)
    assert open_single_file(file).schedule.is_v_prediction


def test_without_a_tokenizer_the_remedy_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    shutil.rmtree(file.parent / "tokenizer")
    with pytest.raises(ModelError, match=r"brings no tokenizer: put vocab.json and merges.txt.*open-clip-torch"):
        load_model(file)


def test_a_packages_vocabulary_is_read_without_importing_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = (file.parent / "tokenizer" / "merges.txt").read_text().split("\n")[1:-1]
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    packed = "\n".join(["bpe_simple_vocab_16e6.txt#version: 0.2", *merges, ""])
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(packed.encode()))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    shutil.move(file.parent / "tokenizer", tmp_path / "moved")
    with pytest.raises(ModelError, match=r"is not CLIP's vocabulary"):
        load_model(file)
    monkeypatch.setattr(vocabulary, "_NUM_TOKENS", len(merges) + 514)
    digest = sha256("\n".join(["#version: 0.2", *merges, ""]).encode()).hexdigest()
    monkeypatch.setattr(vocabulary, "_MERGES_SHA256", digest)
    ours, theirs = vocabulary.tokenizer_for(file, pad_token="!"), CLIPTokenizer.from_pretrained(tmp_path / "moved")
    text = "A photo of 2 astronauts, Ünïcode 你好 🚀 isn't it?"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert (ours.pad_token_id, len(ours), ours.model_max_length) == (0, len(theirs), 77)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "is a LoRA; name it with --lora"),
        (["conditioner.embedders.0.model.ln_final.weight", "model.diffusion_model.out.2.weight"], "is the refiner"),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["down_blocks.0.resnets.0.conv1.weight"], "name the folder"),
        (["model.diffusion_model.out.2.weight"], "holds no text encoder"),
        (["cond_stage_model.transformer.x", "model.diffusion_model.x"], "holds no autoencoder"),
        (["weight"], "of no family this version knows"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, names: list[str], said: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "other.safetensors")


def test_an_inpainting_checkpoint_is_refused(file: Path) -> None:
    weights = load_file(file)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    weights[name] = torch.zeros(32, 9, 3, 3)
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"takes 9 channels of latents instead of 4: it was trained for inpainting"):
        load_model(file)


def test_a_file_cut_short_or_missing_is_said(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"is damaged \(\d+ bytes of \d+\); download it again"):
        load_model(file)
    file.unlink()
    with pytest.raises(ModelError, match="is missing"):
        load_model(file)


def test_a_layer_that_is_missing_is_said(file: Path) -> None:
    weights = load_file(file)
    for name in ("model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.weight"):
        save_file({each: tensor for each, tensor in weights.items() if each != name}, file)
        with pytest.raises(ModelError, match="lacks"):
            load_model(file)


def test_a_header_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    giant = tmp_path / "giant.safetensors"
    giant.write_bytes((10**12).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(ModelError, match="no safetensors file"):
        load_model(giant)

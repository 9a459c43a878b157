"""Folders of weights: what is read, and what is refused with which remedy."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.engine.models.loading import load_model
from safelight.errors import ModelError
from safelight.runs import RunParams

from .conftest import Pair
from .drawing import draw_with_engine, largest_difference

ASKED = RunParams(prompt="a cat", height=32, width=32, num_inference_steps=2)
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_v2: Pair, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_v2.folder, tmp_path / "model"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def draws_the_same(folder: Path, pair: Pair) -> bool:
    [ours], [expected] = draw_with_engine(load_model(folder), [ASKED]), draw_with_engine(pair.ours, [ASKED])
    return largest_difference(ours, expected) == 0


def test_half_precision_files_are_found_under_their_variant(folder: Path, tiny_v2: Pair) -> None:
    for name in (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        (folder / name).rename(folder / name.replace(".safetensors", ".fp16.safetensors"))
    assert draws_the_same(folder, tiny_v2)


def test_shards_are_put_together(folder: Path, tiny_v2: Pair) -> None:
    weights = load_file(folder / UNET)
    names = sorted(weights)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / "unet" / shard)
    placed = {name: shard for shard, part in shards.items() for name in part}
    (folder / (UNET + ".index.json")).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / UNET).unlink()
    assert draws_the_same(folder, tiny_v2)


def test_names_of_old_files_are_understood(folder: Path, tiny_v2: Pair) -> None:
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(vae).items():
        new = next((part for part in old if f".attentions.0.{part}." in name), None)
        weights[name.replace(new, old[new]) if new else name] = (
            tensor[:, :, None, None] if new and tensor.ndim == 2 else tensor
        )
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, vae)
    encoder = folder / "text_encoder/model.safetensors"
    bare = {name.removeprefix("text_model."): tensor for name, tensor in load_file(encoder).items()}
    prefixed = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    save_file(prefixed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, encoder)
    assert draws_the_same(folder, tiny_v2)


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("/tmp/safelight-was-here"),)  # type: ignore[return-value]


def test_a_pickle_is_refused_by_its_content_whatever_its_name(folder: Path) -> None:
    for protocol in (2, 5):
        (folder / UNET).write_bytes(pickle.dumps(Malicious(), protocol=protocol))
        with pytest.raises(ModelError, match=r"is a pickle, which can run code.*`safelight convert /"):
            load_model(folder)
    torch.save({"conv_in.weight": torch.zeros(1)}, folder / UNET)
    with pytest.raises(ModelError, match="is a pickle"):
        load_model(folder)
    assert not Path("/tmp/safelight-was-here").exists()


def test_a_folder_of_pickles_only_names_the_way_out(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"is a pickle.*convert"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\xff" * 64, "no safetensors file"),
        (b"\x40" + b"\0" * 7 + b'{"a": 1', "is damaged"),
    ],
)
def test_what_is_no_safetensors_file_is_said(folder: Path, content: bytes, said: str) -> None:
    (folder / UNET).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


def test_a_download_cut_short_is_said(folder: Path) -> None:
    whole = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        load_model(folder)


def test_weights_of_another_model_are_said(folder: Path) -> None:
    weights = load_file(folder / UNET)
    save_file({name: tensor for name, tensor in weights.items() if name != "conv_in.bias"}, folder / UNET)
    with pytest.raises(ModelError, match=r"lacks 1 tensors, the first conv_in.bias"):
        load_model(folder)
    save_file(weights | {"conv_in.bias": torch.zeros(7)}, folder / UNET)
    with pytest.raises(ModelError, match=r"conv_in.bias has the shape \[7\] instead of \[32\]"):
        load_model(folder)
    save_file(weights | {"lora.weight": torch.zeros(7)}, folder / UNET)
    with pytest.raises(ModelError, match=r"lora.weight, which its config.json has no place for"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusion3Pipeline"},
            "StableDiffusion3Pipeline; this version runs",
        ),
        ("model_index.json", {"unet": ["my_code", "UNet"]}, "the unet is a UNet; this version runs"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "is of a UNet3DConditionModel"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type text_time is not supported"),
        ("unet/config.json", {"in_channels": 9}, "conv_in.weight has the shape"),
        ("unet/config.json", {"down_block_types": ["Wrong"]}, "describes no network that can be built"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type sample is not supported"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "beta_schedule odd is not supported"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "odd"}, "timestep_spacing odd is unknown"),
        ("scheduler/scheduler_config.json", {"beta_start": "1"}, "beta_start is '1', not a number"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 300}, "model_max_length 300 is over"),
    ],
)
def test_configs_that_cannot_be_run_are_said(folder: Path, file: str, changes: dict[str, object], said: str) -> None:
    rewrite(folder / file, **changes)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


def test_missing_parts_are_said(folder: Path) -> None:
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(ModelError, match=r"scheduler_config.json is missing; download"):
        load_model(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="vae is missing; download"):
        load_model(folder)
    (folder / "model_index.json").write_text("[")
    with pytest.raises(ModelError, match="is damaged"):
        load_model(folder)


def test_shards_outside_the_folder_are_refused(folder: Path) -> None:
    (folder / (UNET + ".index.json")).write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    (folder / UNET).unlink()
    with pytest.raises(ModelError, match="outside its folder"):
        load_model(folder)


def test_the_cut_is_the_text_as_it_was_written(tiny_v2: Pair) -> None:
    model = tiny_v2.ours
    assert model.encode("A Cat").cut == ""
    words = " ".join(["cat"] * model.num_prompt_tokens)
    assert model.encode(words).cut == ""
    assert model.encode(words + " MARS, Ünïcode 你好!").cut == "MARS, Ünïcode 你好!"

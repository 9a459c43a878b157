from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest

from safelight.catalog import STABLE_DIFFUSION, hub_cache

from .conftest import House


def deployed(house: House) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(house.ok("deployments", "--json").stdout)
    return found


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_model_is_served_under_its_own_name_with_its_licence_shown(house: House) -> None:
    result = house.ok("deploy", "pinhole")
    assert result.stdout == "deployed pinhole as pinhole, version 1\n"
    assert "Apache-2.0: https://" in result.stderr
    assert [(each["name"], each["model"]) for each in deployed(house)] == [("pinhole", "pinhole")]


def test_deploying_again_makes_a_version(house: House) -> None:
    house.ok("deploy", "pinhole", "--name", "toy")
    assert json.loads(house.ok("deploy", "pinhole", "--name", "toy", "--json").stdout)["version"] == 2


def test_set_reaches_defaults_limits_and_metadata(house: House) -> None:
    house.ok("deploy", "pinhole", "--set", "height=768", "--set", "max_side=768", "--set", "embed_metadata=false")
    (each,) = deployed(house)
    assert each["defaults"]["height"] == 768
    assert each["limits"]["max_side"] == 768
    assert each["embed_metadata"] is False


def test_a_size_that_is_not_the_models_own_is_said_with_the_command_that_changes_it(house: House) -> None:
    note = house.ok("deploy", "stable-diffusion").stderr
    assert "get 512x512; stable-diffusion was trained at 768x768" in note
    command = note.split("To change: safelight ")[1].splitlines()[0].split()
    assert "trained at" not in house.ok(*command).stderr


def test_missing_weights_are_a_warning_with_the_remedy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder))
    result = house.ok("deploy", "stable-diffusion")
    assert "warning: " in result.stderr
    assert "safelight pull stable-diffusion" in result.stderr


def test_a_folder_is_served_under_its_last_name(house: House) -> None:
    folder = model_folder(house.folder / "models" / "My-Model")
    house.ok("deploy", str(folder))
    assert [(each["name"], each["model"]) for each in deployed(house)] == [("my-model", str(folder))]


def test_a_checkpoint_file_is_served_under_its_stem(house: House) -> None:
    prefixes = ("cond_stage_model.transformer.", "model.diffusion_model.", "first_stage_model.decoder.")
    names = {prefix + "x": [1] for prefix in prefixes}
    names["model.diffusion_model.input_blocks.0.0.weight"] = [1, 4, 1, 1]
    file = house.folder / "My_Model v1.5.safetensors"
    write_safetensors(file, names)
    assert "brings no tokenizer: put vocab.json and merges.txt" in house.refused("deploy", str(file))
    write_tokenizer(house.folder / "tokenizer")
    house.ok("deploy", str(file))
    assert [(each["name"], each["model"]) for each in deployed(house)] == [("my-model-v1-5", str(file))]
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in house.refused("deploy", str(file), "--name", "other")
    assert len(deployed(house)) == 1


def test_loras_are_registered_by_name_and_looked_at_first(house: House) -> None:
    model = model_folder(house.folder / "model")
    (model / "unet").mkdir()
    (model / "unet" / "config.json").write_text('{"cross_attention_dim": 768}')
    write_safetensors(model / "unet" / "diffusion_pytorch_model.safetensors", {"x": [1]})
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    right, wrong = house.folder / "right.safetensors", house.folder / "wrong.safetensors"
    write_safetensors(right, {key: [4, 768]})
    write_safetensors(wrong, {key: [4, 1024]})
    house.ok("deploy", str(model), "--lora", "lego=right.safetensors")
    assert deployed(house)[0]["serving"]["lora_files"] == [["lego", str(right)]]  # type: ignore[index]
    said = "was made for Stable Diffusion 2.x (text of width 1024); this model is Stable Diffusion 1.x"
    assert said in house.refused("deploy", str(model), "--lora", f"lego={wrong}")
    assert "lost.safetensors cannot be read" in house.refused("deploy", str(model), "--lora", "a=lost.safetensors")
    assert "is not NAME=FILE" in house.refused("deploy", str(model), "--lora", "right.safetensors")
    assert "is named twice" in house.refused("deploy", str(model), "--lora", f"a={right}", "--lora", f"a={right}")
    assert len(deployed(house)) == 1


def test_a_folder_whose_files_cannot_be_loaded_is_refused_before_it_has_a_name(house: House) -> None:
    model = model_folder(house.folder / "model")
    (model / "vae").mkdir()
    refused = functools.partial(house.refused, "deploy", str(model))
    assert "holds no weights: diffusion_pytorch_model.safetensors is missing" in refused()
    pickled = model / "vae" / "diffusion_pytorch_model.bin"
    pickled.write_bytes(b"PK\x03\x04")
    assert f"`safelight convert {pickled} --out {pickled.with_suffix('.safetensors')}`" in refused()
    write_safetensors(pickled.with_suffix(".safetensors"), {"x": [8]})
    house.ok("deploy", str(model))
    whole = pickled.with_suffix(".safetensors").read_bytes()
    pickled.with_suffix(".safetensors").write_bytes(whole[:-1])
    assert "is damaged" in refused()
    assert len(deployed(house)) == 1


def write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).touch()


def write_safetensors(file: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def test_identifiers_of_ones_own_come_from_a_file(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(house.folder / "weights")
    own = house.folder / "catalogue.toml"
    own.write_text(
        '[ours]\ntitle = "Ours"\npath = "weights"\nfamily = "stable-diffusion-1"\nlicence = "private"\n'
        'defaults = { sampler = "ddim", num_inference_steps = 20, guidance_scale = 5 }\n'
        f'[theirs]\nrepository = "their/model"\ncommit = "{"a" * 40}"\ndigests = {{ "unet/x" = "{"b" * 64}" }}\n'
    )
    monkeypatch.setenv("SAFELIGHT_CATALOG", str(own))
    found = {each["identifier"]: each for each in json.loads(house.ok("models", "--json", takes_data=False).stdout)}
    assert found["ours"]["folder"] == str(house.folder / "weights")
    assert not found["theirs"]["is_here"]
    house.ok("deploy", "ours")
    defaults = deployed(house)[0]["defaults"]
    assert isinstance(defaults, dict)
    assert (defaults["sampler"], defaults["num_inference_steps"], defaults["guidance_scale"]) == ("ddim", 20, 5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ours]", "ours: it needs either a path or a repository"),
        ("[Ours]\npath = 'x'", "its name 1 to 63 of a-z"),
        ("[ours]\npath = 'x'\nurl = 'y'", "ours: url is not known; known are"),
        ("[ours]\nrepository = 'a/b'\ncommit = 'main'", "commit is 'main', which does not match"),
        ("[ours]\npath = 1", "path is 1, not a text"),
        ("[ours]\npath = 'x'\nfamily = 'flux'", "family is 'flux', not one of stable-diffusion-1"),
        ("[ours]\npath = 'x'\ndefaults = { steps = 1 }", "defaults.steps is not known; known are height"),
        ("[ours]\npath = 'x'\ndefaults = { sampler = 'fast' }", "defaults.sampler is 'fast', not one of euler"),
        (
            "[ours]\npath = 'x'\ndefaults = { guidance_scale = 'high' }",
            "defaults.guidance_scale is 'high', not a number",
        ),
        ("ours", "is not TOML"),
    ],
)
def test_a_wrong_catalogue_names_the_entry_and_the_key(
    house: House, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    own = house.folder / "catalogue.toml"
    own.write_text(text)
    monkeypatch.setenv("SAFELIGHT_CATALOG", str(own))
    assert said in house.refused("models", takes_data=False)


def test_the_revision_recorded_is_the_one_on_this_machine(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder / "hf"))
    source = STABLE_DIFFUSION.hub[-1]
    repository = "models--" + source.repository.replace("/", "--")
    model_folder(house.folder / "hf" / "hub" / repository / "snapshots" / str(source.commit))
    house.ok("deploy", "stable-diffusion")
    assert deployed(house)[0]["revision"] == source.commit
    assert source.commit in house.refused("deploy", "stable-diffusion", "--revision", "0" * 40)


def test_of_several_snapshots_the_one_that_is_named_is_deployed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder))
    repository = hub_cache(house.folder) / "models--our--model"
    for commit in ("a" * 40, "b" * 40):
        model_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    for arguments, recorded in (((), "b" * 40), (("--revision", "a" * 40), "a" * 40)):
        result = house.ok("deploy", "our/model", *arguments)
        assert "warning" not in result.stderr
        assert deployed(house)[0]["revision"] == recorded
    lost = house.refused("deploy", "our/model", "--revision", "c" * 40)
    assert f"there is {'b' * 40}; fetch it with `safelight pull our/model --revision {'c' * 40}` first" in lost
    assert "is not a commit in full" in house.refused("deploy", "our/model", "--revision", "main")


def test_a_pinned_revision_that_is_not_here_is_a_warning_with_its_remedy(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder))
    original, mirror = STABLE_DIFFUSION.hub
    model_folder(hub_cache(house.folder) / ("models--" + original.repository.replace("/", "--")) / "snapshots" / "a")
    result = house.ok("deploy", "stable-diffusion", "--revision", str(mirror.commit))
    assert f"`safelight pull stable-diffusion --revision {mirror.commit}`" in result.stderr
    assert deployed(house)[0]["revision"] == mirror.commit


def test_what_has_no_revisions_refuses_one(house: House) -> None:
    assert "without revisions" in house.refused("deploy", "pinhole", "--revision", "0" * 40)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("deploy", "no-such-model"), "pinhole, sd-turbo, sdxl"),
        (("deploy", "pinhole", "--name", "Bad Name"), "a-z, 0-9"),
        (("deploy", "pinhole", "--name", "runs"), "reserved"),
        (("deploy", "pinhole", "--set", "hight=1"), "known are"),
    ],
)
def test_what_cannot_be_deployed_is_refused(house: House, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in house.refused(*arguments)
    assert not house.data.exists()


def test_an_undeployed_name_is_gone(house: House) -> None:
    house.ok("deploy", "pinhole")
    house.ok("undeploy", "pinhole")
    assert deployed(house) == []
    assert "nothing is deployed" in house.ok("deployments").stderr
    house.refused("undeploy", "pinhole")


def test_models_tells_what_is_here(house: House) -> None:
    table = house.ok("models", takes_data=False).stdout
    found = json.loads(house.ok("models", "--json", takes_data=False).stdout)
    for each in found:
        assert each["identifier"] in table
        assert each["is_here"] is (each["remedy"] is None)

"""The commands that draw, with the model in the box, at a small size."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from safelight.catalog import PINHOLE_FOLDER
from safelight.cli.demo.server import running_server
from safelight.cli.serve import curl_line
from safelight.pictures import read_pixels, read_texts
from tests import lean

from .conftest import House, needs_pinhole

pytestmark = needs_pinhole()

SMALL = ("--height", "64", "--width", "128", "--steps", "2")


@pytest.fixture(scope="module", autouse=True)
def lean_servers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", lean.path())
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, str]]:
    """A house with pinhole served in it, and the address."""
    house = House(tmp_path_factory.mktemp("server"))
    house.ok("deploy", "pinhole", "--set", "num_inference_steps=2", "--set", "height=64", "--set", "width=64")
    with running_server(house.data, house.folder / "server.log") as address:
        yield house, address


def test_generate_draws_in_this_process_with_the_parameters_inside(house: House) -> None:
    asked = ("generate", "a red boat", *SMALL, "--images", "2", "--seed", "7", "-n", "sky", "--out", "out", "--json")
    answer = json.loads(house.ok(*asked, takes_data=False).stdout)
    assert [each["seed"] for each in answer["images"]] == [7, 8]
    texts = read_texts(Path(answer["images"][1]["path"]).read_bytes())
    drawn = json.loads(texts["safelight"])
    assert (drawn["prompt"], drawn["negative_prompt"], drawn["seed"]) == ("a red boat", "sky", 8)
    assert (drawn["height"], drawn["width"], drawn["num_inference_steps"]) == (64, 128, 2)


def test_generate_begins_from_a_picture_with_loras(house: House) -> None:
    picture, painted = write_pictures(house.folder)
    lora = write_lora(house.folder / "my lego.safetensors")
    asked = ("generate", "a red boat", "--steps", "2", "--seed", "7", "--init-image", picture, "--lora", f"{lora}=0.5")
    answer = json.loads(house.ok(*asked, "--mask", painted, "--strength", "0.5", "--json", takes_data=False).stdout)
    data = Path(answer["images"][0]["path"]).read_bytes()
    drawn = json.loads(read_texts(data)["safelight"])
    assert (drawn["height"], drawn["width"], drawn["strength"], drawn["has_mask"]) == (64, 128, 0.5, True)
    assert drawn["loras"] == [{"name": "my-lego", "scale": 0.5}]
    kept = read_pixels(data)[:, :32].mean(axis=(0, 1))
    assert kept[0] > 150 and kept[1] < 100, "what is black in the mask stays red"


def test_what_generate_cannot_begin_from_is_said(house: House) -> None:
    picture, _ = write_pictures(house.folder)
    small = house.folder / "small.png"
    Image.new("L", (64, 64)).save(small)
    asked = ("generate", "x", "--init-image")
    refused = functools.partial(house.refused, takes_data=False)
    assert "lost.png cannot be read" in refused(*asked, "lost.png")
    assert "no whole PNG" in refused(*asked, __file__)
    assert "is 64 x 64 pixels and the init_image 128 x 64" in refused(*asked, picture, "--mask", str(small))
    assert "strength: 2.0 is not over 0" in refused(*asked, picture, "--strength", "2")
    assert "mask: says where an init_image" in refused("generate", "x", "--mask", str(small))
    assert "is not NAME=SCALE with a number" in refused("generate", "x", "--lora", "lego=strong")
    assert "lost.safetensors cannot be read" in refused("generate", "x", "--lora", "lost.safetensors")


def test_predict_sends_pictures_and_loras(server: tuple[House, str], tmp_path: Path) -> None:
    house, address = server
    lora = write_lora(tmp_path / "lego.safetensors")
    house.ok("deploy", "pinhole", "--name", "bricks", "--set", "num_inference_steps=2", "--lora", f"lego={lora}")
    key = house.ok("keys", "create", "bricks").stdout.strip()
    picture, painted = write_pictures(tmp_path)
    asked = ("predict", "bricks", "a boat", "--url", address, "--key", key, "--out", str(tmp_path / "out"), "--json")
    begun = (*asked, "--init-image", picture, "--mask", painted, "--strength", "0.5", "--lora", "lego=0.5")
    run_id = json.loads(house.ok(*begun, takes_data=False).stdout)["run_id"]
    params = json.loads(house.ok("runs", "show", run_id, "--json").stdout)["params"]
    assert (params["height"], params["width"], params["strength"], params["has_mask"]) == (64, 128, 0.5, True)
    assert params["loras"] == [{"name": "lego", "scale": 0.5}]
    again = house.ok(*asked, "--init-image", f"run:{run_id}/0", takes_data=False)
    assert len(json.loads(again.stdout)["images"]) == 1
    assert '"duplo" is no LoRA of bricks: it has lego' in house.refused(*asked, "--lora", "duplo", takes_data=False)


def write_pictures(folder: Path) -> tuple[str, str]:
    """A red picture, 128 x 64, and a mask for its right half."""
    picture, painted = folder / "red.png", folder / "right.png"
    Image.new("RGB", (128, 64), (220, 30, 30)).save(picture)
    mask = Image.new("L", (128, 64))
    mask.paste(255, (64, 0, 128, 64))
    mask.save(painted)
    return str(picture), str(painted)


def write_lora(file: Path) -> Path:
    """For one layer of pinhole's denoiser, of rank 1."""
    weight = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    config = json.loads((PINHOLE_FOLDER / "unet" / "config.json").read_text())
    down, up = torch.ones(1, config["cross_attention_dim"]), torch.ones(config["block_out_channels"][1], 1)
    save_file({f"unet.{weight}.lora_A.weight": down, f"unet.{weight}.lora_B.weight": up}, file)
    return file


def test_predict_asks_a_server_and_writes_what_it_answers(server: tuple[House, str], tmp_path: Path) -> None:
    house, address = server
    key = house.ok("keys", "create", "predict").stdout.strip()
    asked = ("predict", "pinhole", "a red boat", "--url", address, "--key", key, "--seed", "7", "--out", str(tmp_path))
    answer = json.loads(house.ok(*asked, "--json", takes_data=False).stdout)
    (image,) = answer["images"]
    assert Path(image["path"]) == tmp_path / "a-red-boat-7.png"
    assert json.loads(house.ok("runs", "show", answer["run_id"], "--json").stdout)["status"] == "succeeded"


def test_predict_repeats_what_the_server_says_is_wrong(server: tuple[House, str], tmp_path: Path) -> None:
    house, address = server
    key = house.ok("keys", "create", "wrong").stdout.strip()
    asked = ("predict", "pinhole", "x", "--url", address, "--out", str(tmp_path))
    assert "height" in house.refused(*asked, "--key", key, "--height", "65", takes_data=False)
    assert "--key" in house.refused(*asked, takes_data=False)
    assert house.run(*asked, "--key", "sl_live_nonsense", takes_data=False).exit_code == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_line_that_serve_prints_works_when_pasted(server: tuple[House, str], tmp_path: Path) -> None:
    house, address = server
    key = house.ok("keys", "create", "curl").stdout.strip()
    subprocess.run(["bash", "-c", curl_line(address, "pinhole", key)], cwd=tmp_path, check=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

"""The commands that draw, with the model in the box, at a small size."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.cli.demo.server import running_server
from safelight.cli.serve import curl_line
from safelight.pictures import read_texts

from .conftest import House, needs_pinhole

pytestmark = needs_pinhole()

SMALL = ("--height", "64", "--width", "128", "--steps", "2")


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


def test_the_demo_runs_where_one_ran_before(house: House) -> None:
    earlier = ("--data", "demo/data")
    house.ok("deploy", "pinhole", "--name", "dreambooth-webhook", *earlier, takes_data=False)
    house.ok("keys", "create", "demo", *earlier, takes_data=False)
    told = house.ok("demo", "--out", "demo", *SMALL, takes_data=False)
    assert "webhook, verified" in told.stdout
    assert len(list((house.folder / "demo").glob("*.png"))) == 4
    keys = json.loads(house.ok("keys", "list", "--json", *earlier, takes_data=False).stdout)
    assert all(key["revoked_at"] for key in keys if key["name"] == "demo")

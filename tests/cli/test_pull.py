"""Weights from the hub: whole, checked, resumed, or refused with the remedy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import file_download

from safelight.catalog import CatalogEntry, HubSource, find_weights, hub_entry
from safelight.errors import ModelError
from safelight.hub import fetch

from .conftest import House
from .hub_double import COMMIT, HubDouble

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
FILES = {
    "model_index.json": b"{}",
    "README.md": b"not wanted",
    UNET: os.urandom(300_000),
    "unet/diffusion_pytorch_model.safetensors": b"not wanted",
    "unet/config.json": b'{"a": 1}',
    "vae/diffusion_pytorch_model.safetensors": b"the only one there is",
    "tokenizer/merges.txt": b"a b",
    "safety_checker/model.fp16.safetensors": b"not wanted",
}
WANTED = {name for name, content in FILES.items() if content != b"not wanted"}
ENTRY = replace(hub_entry("our/model"), identifier="ours")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    with HubDouble({"our/model": FILES}) as double:
        yield double


def fetched(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_the_model_needs_is_fetched_and_found(hub: HubDouble, tmp_path: Path) -> None:
    folder = fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert fetched(folder) == {name: FILES[name] for name in WANTED}
    assert folder.name == COMMIT
    assert hub.asked[-1][0] == "model_index.json"
    assert find_weights("ours", folders={}, hf_home=tmp_path, catalog={"ours": ENTRY}) == folder


def test_an_interrupted_download_goes_on_where_it_ended(hub: HubDouble, tmp_path: Path) -> None:
    hub.bytes_left = 100_000
    with pytest.raises(ModelError, match="what was fetched so far is kept"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    with pytest.raises(ModelError, match="not on this machine"):
        find_weights("ours", folders={}, hf_home=tmp_path, catalog={"ours": ENTRY})
    num_kept = sum(path.stat().st_size for path in tmp_path.rglob("*.partial"))
    assert 90_000 < num_kept < 100_000
    hub.bytes_left = None
    hub.asked.clear()
    folder = fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert fetched(folder)[UNET] == FILES[UNET]
    assert [span for name, span in hub.asked if name == UNET] == [f"bytes={num_kept}-"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_file_with_another_digest_is_thrown_away(hub: HubDouble, tmp_path: Path) -> None:
    wrong = replace(ENTRY, digests={UNET: "0" * 64})
    with pytest.raises(ModelError, match=f"{UNET} is not the file it should be.*was thrown away"):
        fetch(wrong, tmp_path / "hub", endpoint=hub.url)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert FILES[UNET] not in kept
    right = replace(ENTRY, digests={UNET: hashlib.sha256(FILES[UNET]).hexdigest()})
    assert fetch(right, tmp_path / "hub", endpoint=hub.url).is_dir()


def test_a_mirror_is_asked_where_the_first_source_is_gone(hub: HubDouble, tmp_path: Path) -> None:
    mirrored = replace(ENTRY, hub=(HubSource("gone/model"), HubSource("our/model", COMMIT)))
    assert "models--our--model" in str(fetch(mirrored, tmp_path / "hub", endpoint=hub.url))
    nowhere = replace(ENTRY, hub=(HubSource("gone/model"), HubSource("lost/model")))
    with pytest.raises(ModelError, match=r"the hub has no gone/model and no lost/model .*hf auth login"):
        fetch(nowhere, tmp_path / "hub", endpoint=hub.url)


def test_a_gated_repository_says_how_to_get_in(hub: HubDouble, tmp_path: Path) -> None:
    hub.gated = frozenset({"our/model"})
    with pytest.raises(ModelError, match=r"is gated: accept its licence at https.*our/model, log in"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)


def test_without_network_the_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be asked for our/model .*check the network.*setting models"):
        fetch(ENTRY, tmp_path / "hub", endpoint="http://127.0.0.1:9")


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: HubDouble, tmp_path: Path) -> None:
    hub.claimed_bytes = 10**15
    with pytest.raises(ModelError, match=r"needs \d+\.\d GB and .* GB free; make room, or set hf_home"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert hub.asked == []


def test_a_disk_that_fills_up_is_said(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safelight.hub.http_get", full)
    with pytest.raises(ModelError, match=r"is full; make room and run this again"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)


def test_a_repository_without_a_model_is_refused(hub: HubDouble, tmp_path: Path) -> None:
    hub.repositories = {"our/model": {"README.md": b""}}
    with pytest.raises(ModelError, match="holds no diffusers model"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)


def test_the_command_fetches_once_and_then_says_it_is_here(hub: HubDouble, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "SAFELIGHT_HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "safelight", "pull", "our/model"]
    first, second = (
        subprocess.run(command, check=False, env=environment, capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert (Path(first.stdout.strip()) / "model_index.json").is_file()
    assert "here already" in second.stderr


def test_what_is_no_identifier_is_refused(house: House) -> None:
    assert "neither an identifier nor a repository" in house.refused("pull", "nonsense", takes_data=False)
    assert "has its own" in house.refused("pull", "sdxl", "--revision", COMMIT, takes_data=False)


def test_a_repository_is_deployed_by_its_name_once_it_is_here(
    house: House, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder))
    assert "safelight pull our/model` first" in house.refused("deploy", "our/model")
    entry: CatalogEntry = hub_entry("our/model")
    fetch(entry, house.folder / "hub", endpoint=hub.url)
    assert "deployed our/model as model" in house.ok("deploy", "our/model").stdout

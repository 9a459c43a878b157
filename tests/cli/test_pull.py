"""Weights from the hub: whole, checked, resumed, or refused with the remedy."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import file_download, hf_hub_download

from safelight.catalog import CatalogEntry, HubSource, find_weights, hub_entry
from safelight.errors import ModelError
from safelight.hub import fetch

from .conftest import House
from .hub_double import COMMIT, HubDouble

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
INDEX = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder_2": [None, None],
}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
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


def partial_of(content: bytes, cache: Path) -> Path:
    """Where a download of `content` that was interrupted would be."""
    file = cache / "models--our--model" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.partial"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_a_file_without_a_digest_is_checked_against_its_etag(hub: HubDouble, tmp_path: Path) -> None:
    partial_of(FILES[UNET], tmp_path / "hub").write_bytes(b"?" * 1000)
    with pytest.raises(ModelError, match=f"{UNET} is not the file it should be.*was thrown away"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert fetched(fetch(ENTRY, tmp_path / "hub", endpoint=hub.url))[UNET] == FILES[UNET]


def test_a_partial_longer_than_its_file_is_begun_anew(hub: HubDouble, tmp_path: Path) -> None:
    partial_of(FILES[UNET], tmp_path / "hub").write_bytes(FILES[UNET] + b"?")
    assert fetched(fetch(ENTRY, tmp_path / "hub", endpoint=hub.url))[UNET] == FILES[UNET]
    assert (UNET, None) in hub.asked


def test_a_file_is_on_the_disk_before_it_has_its_name(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert sorted(synced) == sorted(len(FILES[name]) for name in WANTED)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that somebody wanted alone, each time."""
    names: list[str] = []
    flock = fcntl.flock

    def note(file: object, operation: int) -> None:
        names.append(str(getattr(file, "name", "")))
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", note)
    return names


def wait_for(locked: list[str], partial: Path, *, times: int) -> None:
    until = time.monotonic() + 5
    while locked.count(str(partial)) < times and time.monotonic() < until:
        time.sleep(0.01)


def pull_meanwhile(hub: HubDouble, locked: list[str], cache: Path) -> list[Future[Path]]:
    """A pull that begins while UNET is under way to another, and has come to that file too."""
    later: list[Future[Path]] = []

    def begin(name: str) -> None:
        if name == UNET and not later:
            later.append(ThreadPoolExecutor(1).submit(fetch, ENTRY, cache, endpoint=hub.url))
            wait_for(locked, partial_of(FILES[UNET], cache), times=2)

    hub.before_body = begin
    return later


def test_two_pulls_at_once_fetch_a_file_once(hub: HubDouble, locked: list[str], tmp_path: Path) -> None:
    later = pull_meanwhile(hub, locked, tmp_path / "hub")
    folder = fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert later[0].result(20) == folder
    assert fetched(folder)[UNET] == FILES[UNET]
    assert [name for name, _ in hub.asked].count(UNET) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_a_pull_that_waited_for_a_file_which_was_thrown_away_fetches_it(
    hub: HubDouble, locked: list[str], tmp_path: Path
) -> None:
    later = pull_meanwhile(hub, locked, tmp_path / "hub")
    with pytest.raises(ModelError, match="was thrown away"):
        fetch(replace(ENTRY, digests={UNET: "0" * 64}), tmp_path / "hub", endpoint=hub.url)
    assert fetched(later[0].result(20))[UNET] == FILES[UNET]
    assert [each for each in hub.asked if each[0] == UNET] == [(UNET, None)] * 2


def test_a_pull_that_waited_for_an_interrupted_one_goes_on_where_that_ended(
    hub: HubDouble, locked: list[str], tmp_path: Path
) -> None:
    partial = partial_of(FILES[UNET], tmp_path / "hub")
    with ThreadPoolExecutor(1) as pool:
        with partial.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(fetch, ENTRY, tmp_path / "hub", endpoint=hub.url)
            wait_for(locked, partial, times=2)
            held.write(FILES[UNET][:200_000])
        assert fetched(waiting.result(20))[UNET] == FILES[UNET]
    assert [span for name, span in hub.asked if name == UNET] == ["bytes=200000-"]


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


@pytest.mark.parametrize("name", ["our/model.git", "our/mo--del", "our/mo..del"])
def test_a_name_that_no_repository_can_have_is_not_there(hub: HubDouble, tmp_path: Path, name: str) -> None:
    entry = replace(ENTRY, hub=(HubSource(name, None),))
    with pytest.raises(ModelError, match="the hub has no"):
        fetch(entry, tmp_path / "hub", endpoint=hub.url)


def test_without_network_the_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be asked for our/model .*check the network.*setting models"):
        fetch(ENTRY, tmp_path / "hub", endpoint="http://127.0.0.1:9")


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: HubDouble, tmp_path: Path) -> None:
    hub.claimed_bytes = 10**15
    with pytest.raises(ModelError, match=r"needs \d+\.\d GB and .* GB free; make room, or set hf_home"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert hub.asked == []


def test_what_an_interrupted_download_left_needs_no_room_again(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_missing = sum(len(FILES[name]) for name in WANTED) - 200_000
    partial_of(FILES[UNET], tmp_path / "hub").write_bytes(FILES[UNET][:200_000])
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(num_missing - 1))
    with pytest.raises(ModelError, match="make room"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(num_missing))
    assert fetched(fetch(ENTRY, tmp_path / "hub", endpoint=hub.url))[UNET] == FILES[UNET]


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


@pytest.mark.parametrize(
    "only",
    [
        ("vae/diffusion_pytorch_model.bin",),
        ("vae/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model-1-of-1.safetensors"),
        ("vae/config.json",),
    ],
)
def test_a_network_without_a_file_that_can_be_served_is_refused_before_anything_is_fetched(
    hub: HubDouble, tmp_path: Path, only: tuple[str, ...]
) -> None:
    others = {name: content for name, content in FILES.items() if not name.startswith("vae/")}
    hub.repositories = {"our/model": others | dict.fromkeys(only, b"x")}
    with pytest.raises(ModelError, match=r"ours has no vae/diffusion_pytorch_model\.safetensors or its variant fp16"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)
    assert hub.asked == []


def test_a_network_that_the_index_names_and_the_repository_lacks_is_said(hub: HubDouble, tmp_path: Path) -> None:
    hub.repositories = {"our/model": {name: content for name, content in FILES.items() if not name.startswith("vae/")}}
    with pytest.raises(ModelError, match=r"our/model holds no vae, which its model_index\.json names"):
        fetch(ENTRY, tmp_path / "hub", endpoint=hub.url)


def test_a_pull_goes_on_where_another_tool_stopped(
    house: House, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for name in ("model_index.json", "vae/diffusion_pytorch_model.safetensors"):
        hf_hub_download("our/model", name, cache_dir=house.folder / "hub", endpoint=hub.url)
    with pytest.raises(ModelError, match="not on this machine"):
        find_weights("our/model", folders={}, hf_home=house.folder)
    hub.asked.clear()
    folder = fetch(hub_entry("our/model"), house.folder / "hub", endpoint=hub.url)
    assert fetched(folder) == {name: FILES[name] for name in WANTED}
    assert "vae/diffusion_pytorch_model.safetensors" not in [name for name, _ in hub.asked]
    assert find_weights("our/model", folders={}, hf_home=house.folder) == folder


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
    assert "without revisions" in house.refused("pull", "pinhole", "--revision", COMMIT, takes_data=False)


def test_the_commit_that_a_deployment_asks_for_is_fetched_beside_the_catalogues(hub: HubDouble, tmp_path: Path) -> None:
    own = tmp_path / "catalogue.toml"
    own.write_text(
        f'[ours]\nrepository = "our/model"\ncommit = "{COMMIT}"\nvariant = "fp16"\n'
        f'digests = {{ "{UNET}" = "{hashlib.sha256(FILES[UNET]).hexdigest()}" }}\n'
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "SAFELIGHT_HF_HOME": str(tmp_path),
        "SAFELIGHT_CATALOG": str(own),
    }
    command = [sys.executable, "-m", "safelight", "pull", "ours"]
    pinned = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    hub.commit, hub.repositories = "d" * 40, {"our/model": FILES | {UNET: b"other weights"}}
    command += ["--revision", hub.commit]
    asked = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert (Path(asked.stdout.strip()) / UNET).read_bytes() == b"other weights"
    assert (Path(pinned.strip()) / UNET).read_bytes() == FILES[UNET]


def test_a_repository_is_deployed_by_its_name_once_it_is_here(
    house: House, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_HF_HOME", str(house.folder))
    assert "safelight pull our/model` first" in house.refused("deploy", "our/model")
    entry: CatalogEntry = hub_entry("our/model")
    fetch(entry, house.folder / "hub", endpoint=hub.url)
    assert "deployed our/model as model" in house.ok("deploy", "our/model").stdout

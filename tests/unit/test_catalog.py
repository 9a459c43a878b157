"""What the package knows of the models that people ask for by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.catalog import (
    CATALOG,
    COMMIT,
    PINHOLE,
    STABLE_DIFFUSION,
    HubSource,
    check_model,
    find_weights,
    hub_cache,
    hub_entry,
    name_for,
)
from safelight.deployments import Limits, check_name
from safelight.errors import InvalidFields, ModelError
from safelight.runs import RunParams

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_identifier_says_all_that_deploy_shows_and_is_documented() -> None:
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENTED, flags=re.MULTILINE) == list(CATALOG)
    for identifier, entry in CATALOG.items():
        assert entry.identifier == identifier
        assert entry.family and entry.title and entry.licence and entry.num_bytes > 0
        assert entry.licence_url.startswith("https://")
        assert entry.folder is not None or COMMIT.fullmatch(str(entry.hub[-1].commit)), "the last resort is pinned"


def test_every_identifiers_defaults_are_within_the_limits_that_it_gets() -> None:
    for entry in CATALOG.values():
        defaults = {name: getattr(entry.defaults, name) for name in type(entry.defaults).__dataclass_fields__}
        assert Limits().check(RunParams(prompt="x", **defaults)) == ()


def test_stable_diffusion_is_version_2_1_at_a_pinned_commit_whose_files_are_known() -> None:
    pinned = STABLE_DIFFUSION.hub[-1]
    assert COMMIT.fullmatch(str(pinned.commit))
    folders = {name.split("/")[0] for name in STABLE_DIFFUSION.digests}
    assert folders == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in STABLE_DIFFUSION.digests.values())


def test_a_deployment_can_be_called_by_any_identifier_that_a_catalogue_may_have() -> None:
    catalog = {**CATALOG, "sd-2.1": replace(STABLE_DIFFUSION, identifier="sd-2.1")}
    names = [name_for(identifier, catalog=catalog) for identifier in catalog]
    for name in names:
        check_name(name)
    assert names == [*CATALOG, "sd-2-1"]


OLD, NEW = "a" * 40, "b" * 40
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def test_weights_are_looked_for_where_the_hub_s_own_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert hub_cache(None) == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert hub_cache(None) == Path("/elsewhere/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/cache")
    assert hub_cache(None) == Path("/cache")
    assert hub_cache(tmp_path) == tmp_path / "hub", "a setting of our own goes before"


def snapshot(hf_home: Path, commit: str, *, files: tuple[str, ...] = (UNET,)) -> Path:
    """Our model in the hub's cache, as far as it is looked at."""
    folder = hub_cache(hf_home) / "models--our--model" / "snapshots" / commit
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(PARTS))
    return folder


@pytest.mark.parametrize("model", ["é" * 200, "/" + "x" * 300, "a/" + "x" * 300, "/x\0y", "x\0y", "/dev/null/x"])
def test_what_no_path_can_be_is_no_model(model: str) -> None:
    with pytest.raises(InvalidFields, match="neither an identifier"):
        check_model(model)
    with pytest.raises(ModelError, match="named by the deployment"):
        find_weights(model, folders={})


def test_of_a_revision_exactly_that_snapshot_is_taken(tmp_path: Path) -> None:
    old, new = snapshot(tmp_path, OLD), snapshot(tmp_path, NEW)
    pinned = {"ours": replace(hub_entry("our/model"), hub=(HubSource("our/model", NEW),))}
    for revision, folder in ((OLD, old), (NEW, new)):
        assert find_weights("our/model", folders={}, hf_home=tmp_path, revision=revision) == folder
        assert find_weights("ours", folders={}, hf_home=tmp_path, catalog=pinned, revision=revision) == folder
    assert find_weights("ours", folders={}, hf_home=tmp_path, catalog=pinned) == new


def test_another_snapshot_than_the_revision_is_refused_with_the_remedy(tmp_path: Path) -> None:
    snapshot(tmp_path, NEW)
    with pytest.raises(ModelError, match=f"`safelight pull our/model --revision {OLD}`"):
        find_weights("our/model", folders={}, hf_home=tmp_path, revision=OLD)


def test_folders_are_taken_as_they_are_whatever_the_revision(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, NEW)
    (folder / UNET).write_bytes((2).to_bytes(8, "little") + b"{}")
    own = {"own": replace(PINHOLE, folder=folder)}
    assert find_weights("stable-diffusion", folders={"stable-diffusion": folder}, revision=OLD) == folder
    assert find_weights(str(folder), folders={}, revision=NEW) == folder
    assert find_weights("own", folders={}, catalog=own, revision=OLD) == folder


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("unet/config.json",),
        ("unet/diffusion_pytorch_model.bin",),
        ("unet/diffusion_pytorch_model.safetensors.index.json",),
    ],
)
def test_a_snapshot_without_the_weights_of_a_network_is_not_here(tmp_path: Path, files: tuple[str, ...]) -> None:
    snapshot(tmp_path, OLD, files=files)
    with pytest.raises(ModelError, match="not on this machine"):
        find_weights("our/model", folders={}, hf_home=tmp_path)
    with pytest.raises(InvalidFields, match="fetch it with `safelight pull our/model` first"):
        check_model("our/model", hf_home=tmp_path)
    whole = snapshot(tmp_path, NEW)
    assert find_weights("our/model", folders={}, hf_home=tmp_path) == whole
    for damaged in ("", "[]", '{"unet": 1}'):
        # Whoever loads it says what is wrong.
        (whole / "model_index.json").write_text(damaged)
        assert find_weights("our/model", folders={}, hf_home=tmp_path) == whole

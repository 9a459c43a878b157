"""What the package knows of the models that people ask for by name."""

from __future__ import annotations

import re
from pathlib import Path

from safelight.catalog import CATALOG, COMMIT, STABLE_DIFFUSION
from safelight.deployments import Limits
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

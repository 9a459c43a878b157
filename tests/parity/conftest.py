"""Two tiny pipelines, made once: folder, diffusers' pipeline from it, ours from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from safelight.engine.models.base import ImageModel
from safelight.engine.models.loading import load_model

from .tiny_models import make_pipeline
from .tiny_xl import make_xl_pipeline


@dataclass(frozen=True)
class Pair:
    """One folder of weights, loaded by both."""

    folder: Path
    theirs: StableDiffusionPipeline | StableDiffusionXLPipeline
    ours: ImageModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("models") / "tiny-v1", is_v2=False)


@pytest.fixture(scope="session")
def tiny_v2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("models") / "tiny-v2", is_v2=True)


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    make_xl_pipeline(folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    return Pair(folder, theirs, load_model(folder))


@pytest.fixture(params=["tiny_v1", "tiny_v2", "tiny_xl"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


def _pair(folder: Path, *, is_v2: bool) -> Pair:
    make_pipeline(folder, is_v2=is_v2)
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    return Pair(folder, theirs, load_model(folder))

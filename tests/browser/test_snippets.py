"""The requests that pages offer to copy, pasted: into a shell, into Python, into Node.js."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.api.dashboard.snippets import predict_snippets
from safelight.keys import Scope

from .site import Site

BODY = {"prompt": 'it\'s a "quoted" house\nwith two lines, ü', "width": 64, "height": 64, "num_inference_steps": 2}
RUNNERS = {
    "curl": ("bash", "-c"),
    "Python": (sys.executable, "-c"),
    "JavaScript": ("node", "--input-type=module", "-e"),
}


@pytest.mark.parametrize("language", RUNNERS)
@pytest.mark.parametrize("is_key_in_it", [True, False])
def test_a_pasted_request_leaves_a_picture(site: Site, tmp_path: Path, language: str, is_key_in_it: bool) -> None:
    if shutil.which(RUNNERS[language][0]) is None:
        pytest.skip(f"no {RUNNERS[language][0]} to paste into")
    key = site.make_key(f"{language} {is_key_in_it}", Scope.PREDICT)
    found = predict_snippets(f"{site.url}/pinhole/predict", BODY, key=key if is_key_in_it else None)
    [text] = [each.text for each in found if each.language == language]
    done = subprocess.run(
        [*RUNNERS[language], text],
        cwd=tmp_path,
        env=os.environ | {"SAFELIGHT_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

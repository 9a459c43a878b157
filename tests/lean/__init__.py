"""Processes as users have them: without the packages that only tests need, and therefore sooner at work."""

from __future__ import annotations

import os
from pathlib import Path

LEAN = Path(__file__).parent
"""A folder for PYTHONPATH: diffusers imports accelerate, peft and scipy wherever they are, and there they are not."""


def path() -> str:
    """PYTHONPATH with that folder first."""
    return os.pathsep.join([str(LEAN), *filter(None, [os.environ.get("PYTHONPATH")])])


def environment() -> dict[str, str]:
    """This process's environment, for such a process."""
    return os.environ | {"PYTHONPATH": path()}

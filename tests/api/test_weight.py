"""The API process stays light: what importing it loads, and what that takes."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys, time
from pathlib import Path
began = time.process_time()
import safelight.api.app, safelight.api.server
seconds = time.process_time() - began
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "ray"} & set(sys.modules)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([sorted(heavy), seconds, int(status["VmHWM"].split()[0]) / 1024]))
"""


def test_importing_the_api_loads_no_torch_and_little_else():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    heavy, seconds, megabytes = json.loads(done.stdout)
    assert heavy == []
    assert seconds < 2
    assert megabytes < 110

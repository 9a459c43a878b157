"""What a worker imports decides how long it takes to start."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_with_a_model_has_imported_torch_and_neither_diffusers_nor_transformers_nor_torchs_compiler() -> None:
    probe = (
        "import sys, safelight.app, safelight.worker, safelight.catalog; from safelight.engine.models.loading import ModelLoader;"
        "loader = ModelLoader(device='cpu', dtype='auto', num_threads=1); loader.prepare();"
        "loader.load(safelight.catalog.PINHOLE_FOLDER);"
        "heavy = ('diffusers', 'transformers', 'scipy', 'sympy', 'torch._dynamo', 'torch._inductor', 'fastapi');"
        "print([name for name in heavy if name in sys.modules], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"

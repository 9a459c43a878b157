"""The engine for programs of their own: `safelight.load`."""

from __future__ import annotations

from pathlib import Path

from safelight.catalog import find_weights
from safelight.engine.engine import Engine
from safelight.engine.models.forwards import BackendName
from safelight.engine.models.loading import ModelLoader
from safelight.engine.tuning import DtypeName


def load(
    *models: str | Path,
    device: str = "cpu",
    dtype: DtypeName = "auto",
    num_threads: int = 0,
    backend: BackendName = "torch",
    drawing_bytes: int | None = None,
) -> Engine:
    """An engine that draws with `models`, each an identifier, a folder in diffusers' layout or a checkpoint file, and
    called by that in assignments.

    `auto` measures which dtype is fastest, 0 threads how many are; torch's number of threads is set for the whole
    process then. With `drawing_bytes` batches stay within so much memory. Raises ModelError with the remedy.
    """
    loader = ModelLoader(device=device, dtype=dtype, num_threads=num_threads, backend=backend)
    loader.prepare()
    engine = Engine(drawing_bytes=drawing_bytes)
    for model in models:
        engine.load(str(model), loader.compile(loader.load(find_weights(str(model), folders={}))))
    return engine

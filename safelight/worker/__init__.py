"""The worker of one device: claims runs, feeds the engine, writes the results. The only place where
store and engine meet.

`claims` holds the runs and their leases, `drawing` sees one run through the engine, `models` what the engine has
loaded, `keeping` what is written meanwhile: pictures and checkpoints.
"""

from safelight.worker.claims import EngineHung, Worker

__all__ = ["EngineHung", "Worker"]

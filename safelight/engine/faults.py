"""What can go wrong in the engine, as run errors: a stable code and a sentence with the remedy."""

from __future__ import annotations

import torch

from safelight.errors import ModelError
from safelight.runs import RunError

NON_FINITE_LATENT = RunError(
    "non_finite_latent",
    "the model produced numbers that are not finite for this image; draw it with another seed or a lower"
    " guidance_scale, or serve the model with dtype float32 or bfloat16",
)
OUT_OF_MEMORY = RunError(
    "out_of_memory",
    "this image does not fit into the device's memory; ask for a smaller height and width, or serve the model on a"
    " device with more memory",
)
MODEL_UNLOADED = RunError("model_unloaded", "the model was unloaded while this run was under way; send the run again")
ENGINE_STOPPED = RunError("engine_stopped", "the engine was stopped before this run was finished; send the run again")

ENGINE_LOST = RunError(
    "engine_lost",
    "the engine failed in a way that only a new process recovers from; start it again, and look at its log",
)
MAY_BE_THE_DEVICE = frozenset({"encode_failed", "engine_failed", "decode_failed"})
"""Codes of runs that failed of themselves, or of a device that is lost."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the host had no room. torch's CPU allocator says so only in words."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_lost(device: str) -> bool:
    """Whether the device takes no more work from this process, as a GPU does after a kernel has read where it must
    not. Waits for what the device still has to do."""
    if not device.startswith("cuda"):
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def model_not_loaded(model_key: str) -> RunError:
    return RunError("model_not_loaded", f"the model {model_key} is not loaded on this worker; send the run again")


def lora_failed(error: ModelError) -> RunError:
    return RunError("lora_failed", error.message)


def encode_failed(error: Exception) -> RunError:
    return _failed("encode_failed", "the prompt could not be encoded", error)


def engine_failed(error: Exception) -> RunError:
    return _failed("engine_failed", "the model failed on this image", error)


def decode_failed(error: Exception) -> RunError:
    return _failed("decode_failed", "the finished latent could not be decoded into a picture", error)


def _failed(code: str, what: str, error: Exception) -> RunError:
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    return RunError(code, f"{what} ({type(error).__name__}: {reason}); if it happens again, look at the worker's log")

"""Tensors on their way between host and device, beside the steps: nobody waits for a GPU. Thread: engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`. To a GPU it goes out of pinned memory, in the stream's order."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Copies of some tensors of one device.

    A CPU's are the tensors themselves: nobody may write into them. On a GPU the copies into pinned memory run in the
    stream's order; nobody waits for them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = [_to_host(tensor) for tensor in tensors]
        self._copied: torch.cuda.Event | None = None
        on_gpu = next((tensor.device for tensor in tensors if tensor.device.type == "cuda"), None)
        if on_gpu is not None:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(on_gpu))

    @property
    def is_ready(self) -> bool:
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def tensors(self) -> list[torch.Tensor]:
        """In the order they came; waits where they are not ready yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor, non_blocking=tensor.device.type == "cuda")

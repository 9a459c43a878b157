"""UNets on a GPU as CUDA graphs: the launches of a forward pass recorded once for each shape and number of rows, then
sent to the device as one.

A shape that was not seen yet runs in torch at once, and is captured when it has come a few times. A graph holds
addresses: of buffers of its own for what comes in and goes out, and of the weights. Where those have moved, the graphs
are dropped; so they are when the model is withdrawn. Thread: engine.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from safelight.engine.models.blocks import compile_blocks
from safelight.engine.models.forwards import Faster, Forward, shapes_of, tensors_in, with_tensors

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of rows that are captured. More run in torch."""

CAPTURE_AT = 3
"""Which call captures: it takes as long as a few calls, which a shape that never returns shall not pay."""

MAX_GRAPHS = 32
"""Of one network: four shapes in all their buckets. The least recently used goes."""

TOLERANCE = 0.01
"""How far a graph's first answer may be from torch's, as a share of its largest value: the kernels are the same."""

MAX_ROWS_ALONE = 2
"""Of an image that travels alone, as deterministic ones do: there a graph's answer must be torch's bit for bit."""

Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], object], torch.Tensor]]
"""Records a call; gives back what replays it, and the tensor that each replay writes its answer into. What one Capture
records shares memory, which is free when all of it is gone."""

_Asked = tuple[tuple[tuple[int, ...], ...], int]
"""Shapes of all tensors that come in, without their rows, and the bucket."""


class GraphCompiler:
    """A Compiler for one GPU. `has_compiled_blocks`: what the graphs record is compiled too, for the
    size of the example.

    Decoders stay in torch: a picture's decode is long beside its launches, and a graph would keep its buffers, the
    largest of all, for ever.
    """

    takes_long = False

    def __init__(self, open_capture: Callable[[], Capture], *, has_compiled_blocks: bool = False) -> None:
        self._open_capture = open_capture
        self._has_compiled_blocks = has_compiled_blocks

    def unet(self, unet: Any, *args: torch.Tensor, **inputs: Any) -> Forward:
        in_torch = compile_blocks(unet, args, inputs, rows=BUCKETS) if self._has_compiled_blocks else unet
        name = "cuda graphs" if in_torch is unet else "cuda graphs of compiled blocks"
        return Graphed(in_torch, tuple(unet.parameters()), self._open_capture, name)

    def decoder(self, vae: Any, latent: torch.Tensor) -> Forward:
        decode: Forward = vae.decode
        return decode


class Graphed(Faster):
    """A network called as in torch, by a graph where one was captured."""

    def __init__(
        self, in_torch: Forward, weights: Sequence[torch.Tensor], open_capture: Callable[[], Capture], name: str
    ) -> None:
        self._name = name
        self._in_torch = in_torch
        self._weights = weights
        self._open_capture = open_capture
        self._capture = open_capture()
        self._addresses: list[int] = []
        self._graphs: OrderedDict[_Asked, _Graph] = OrderedDict()
        self._num_asked: Counter[_Asked] = Counter()
        self._refused: set[_Asked] = set()

    def __call__(self, *args: torch.Tensor, return_dict: bool, **inputs: Any) -> tuple[torch.Tensor, ...]:
        given = list(tensors_in((args, inputs)))
        rows = next((bucket for bucket in BUCKETS if bucket >= len(given[0])), None)
        graph = None if rows is None else self._graph_for((shapes_of(given), rows), args, inputs)
        if graph is None:
            return self._in_torch(*args, return_dict=return_dict, **inputs)
        return (graph.answer(given),)

    def backend_for(self, latent_shape: tuple[int, ...], num_windows: int) -> str:
        return self._name

    def release(self) -> bool:
        had_any = bool(self._graphs)
        self._graphs.clear()
        self._num_asked.clear()
        self._refused.clear()
        return had_any

    def _graph_for(self, asked: _Asked, args: tuple[torch.Tensor, ...], inputs: dict[str, Any]) -> _Graph | None:
        if self._graphs and self._addresses != self._places():
            # The model was moved out and came back: its graphs would read what lies there now.
            self.release()
        if asked in self._graphs:
            self._graphs.move_to_end(asked)
            return self._graphs[asked]
        self._num_asked[asked] += 1
        if self._num_asked[asked] < CAPTURE_AT or asked in self._refused:
            return None
        return self._add(asked, args, inputs)

    def _add(self, asked: _Asked, args: tuple[torch.Tensor, ...], inputs: dict[str, Any]) -> _Graph | None:
        shapes, rows = asked
        if not self._graphs:
            # Memory of its own: torch takes back what belonged to the graphs before, and would not lend it again.
            self._capture = self._open_capture()
        try:
            graph = _captured(self._in_torch, self._capture, rows, args, inputs)
        except Exception as error:
            log.warning("%d rows of %s stay in torch: no CUDA graph (%s)", rows, shapes[0], error)
            self._refused.add(asked)
            return None
        if not self._graphs:
            self._addresses = self._places()
        self._graphs[asked] = graph
        if len(self._graphs) > MAX_GRAPHS:
            dropped, _ = self._graphs.popitem(last=False)
            del self._num_asked[dropped]
        log.info("%d rows of %s run as a CUDA graph", rows, shapes[0])
        return graph

    def _places(self) -> list[int]:
        return [each.data_ptr() for each in self._weights]


@dataclass(frozen=True, slots=True)
class _Graph:
    """`buffers` are where it reads, `out` is where it writes, as many rows as the bucket has."""

    replay: Callable[[], object]
    buffers: Sequence[torch.Tensor]
    out: torch.Tensor

    def answer(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The network's answer for these rows: the caller's own, which the next replay leaves alone."""
        for buffer, tensor in zip(self.buffers, given, strict=True):
            _fill(buffer, tensor)
        self.replay()
        return self.out[: len(given[0])].clone()


def _captured(
    in_torch: Forward, capture: Capture, rows: int, args: tuple[torch.Tensor, ...], inputs: dict[str, Any]
) -> _Graph:
    """Raises RuntimeError where the graph does not give what torch gives."""
    own_args, own_inputs = with_tensors((args, inputs), lambda each: _buffer_for(each, rows))

    def call() -> torch.Tensor:
        return in_torch(*own_args, return_dict=False, **own_inputs)[0]

    expected = call()
    replay, out = capture(call)
    replay()
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    tolerance = 0.0 if rows <= MAX_ROWS_ALONE else TOLERANCE * largest
    if not torch.allclose(out, expected, rtol=0.0, atol=tolerance, equal_nan=True):
        raise RuntimeError("its answer is not torch's")
    return _Graph(replay, tuple(tensors_in((own_args, own_inputs))), out)


def _buffer_for(x: torch.Tensor, rows: int) -> torch.Tensor:
    """With so many rows, in the same layout, and filled."""
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    buffer = torch.empty((rows, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
    _fill(buffer, x)
    return buffer


def _fill(buffer: torch.Tensor, x: torch.Tensor) -> None:
    """With its last row again as often as it takes."""
    buffer[: len(x)].copy_(x)
    if len(x) < len(buffer):
        buffer[len(x) :].copy_(x[-1:].expand_as(buffer[len(x) :]))


class CudaCapture:
    """Captures on one GPU, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def open(self) -> Capture:
        """A Capture into a new pool of memory. Graphs can share one, since each answer is copied out before the next
        replay begins."""
        return partial(self._capture, pool=torch.cuda.graph_pool_handle())

    def _capture(self, call: Callable[[], torch.Tensor], *, pool: Any) -> tuple[Callable[[], object], torch.Tensor]:
        """Raises torch.OutOfMemoryError and other RuntimeErrors; the stream that was current is current again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                # Libraries make their workspaces for a new stream now, and not while it is captured.
                call()
                # Threads that load other models meanwhile may go on.
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    out = call()
            before.wait_stream(self._stream)
        return graph.replay, out

"""UNets and decoders through OpenVINO, on CPUs where that is installed and measured to be faster.

A network is compiled for the shape its model was trained on, and called with any number of rows in parts of the sizes
that were compiled. Every other shape runs in torch, and so does every network that OpenVINO cannot take.
"""

from __future__ import annotations

import copy
import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import torch

from safelight.engine.models.forwards import Faster, Forward, cache_folder, shapes_of, with_rows
from safelight.engine.tuning import MIN_GAIN, NUM_REPEATS, Tuning

log = logging.getLogger(__name__)

MAX_ROWS = 16

MAX_CACHED_BYTES = 300_000_000
"""Weights of a network that is kept on the disk: each compiled size holds them anew, in float32."""

ROW_GAIN = 1.05
"""How much cheaper each row must become for twice as many to be compiled too: every size holds weights of its own."""

PROBE_SECONDS = 0.5


def _silent_openvino() -> Any:
    """The package, an extra, without its part that reports to its makers.

    That part forks the process at import and ends its child with a signal, which an event loop takes for its own.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415

    return openvino


class OpenVINO:
    """A Compiler: compiles networks for one CPU, in the dtype and for the threads of `tuning`. `is_forced`:
    slower ones too."""

    takes_long = True

    def __init__(self, tuning: Tuning, *, is_forced: bool = False) -> None:
        self._core = _silent_openvino().Core()
        self._is_forced = is_forced
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if tuning.dtype is torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": tuning.num_threads,
            "NUM_STREAMS": 1,
            # Other processes work on these cores too.
            "ENABLE_CPU_PINNING": False,
        }

    def unet(self, unet: Any, *args: torch.Tensor, **inputs: Any) -> Forward:
        """A conditional UNet's forward pass: compiled, or as it was. The arguments are an example of one row."""
        return self._faster(Compiled(_UNet(unet), args, inputs), max_rows=MAX_ROWS)

    def decoder(self, vae: Any, latent: torch.Tensor) -> Forward:
        """An autoencoder's `decode`: compiled, or as it was. `latent` is an example of one row."""
        return self._faster(Compiled(_Decoder(vae), (latent,), {}), max_rows=1)

    def _faster(self, compiled: Compiled, *, max_rows: int) -> Forward:
        network = compiled.network
        try:
            gain = self._compile_sizes(compiled, max_rows)
        except Exception as error:
            log.warning("the %s runs in torch: OpenVINO cannot take it (%s)", network.name, error)
            return network.in_torch
        if gain < MIN_GAIN and not self._is_forced:
            log.info("the %s runs in torch: OpenVINO is only %.2f times as fast", network.name, gain)
            return network.in_torch
        log.info("the %s runs in OpenVINO, %.2f times as fast as torch", network.name, gain)
        return compiled

    def _compile_sizes(self, compiled: Compiled, max_rows: int) -> float:
        """Compile for one row, two, four and so on as long as it pays. How much faster than torch two rows are."""
        model = _converted(compiled)
        rows = min(2, max_rows)
        seconds = self._add_size(compiled, model, rows)
        gain = compiled.times_as_fast(rows)
        if max_rows == 1 or (gain < MIN_GAIN and not self._is_forced):
            return gain
        self._add_size(compiled, model, 1)
        while (rows := 2 * rows) <= max_rows:
            before, seconds = seconds, self._add_size(compiled, model, rows)
            if seconds * ROW_GAIN > 2 * before:
                compiled.drop(rows)
                break
        return gain

    def _add_size(self, compiled: Compiled, model: Any, rows: int) -> float:
        """Seconds of one call."""
        model.reshape({place: [rows, *shape] for place, shape in enumerate(compiled.shapes)})
        kept = {"CACHE_DIR": str(cache_folder("openvino"))} if compiled.num_bytes <= MAX_CACHED_BYTES else {}
        request = self._core.compile_model(model, "CPU", self._options | kept).create_infer_request()
        return compiled.add(rows, request)


class _Network(Protocol):
    """A network as torch calls it, and as OpenVINO takes it: by position, tensors only, first axis the rows."""

    name: str
    module: torch.nn.Module
    in_torch: Forward

    def flat(self, *args: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        """The tensors that `traceable` takes for these arguments."""
        ...

    def traceable(self) -> torch.nn.Module:
        """A copy in float32."""
        ...


class Compiled(Faster):
    """A network called as in torch: for the example's shapes by OpenVINO, in parts of the sizes that were added."""

    def __init__(self, network: _Network, args: tuple[torch.Tensor, ...], inputs: Mapping[str, Any]) -> None:
        self.network = network
        self.example = network.flat(*args, **inputs)
        self.shapes = shapes_of(self.example)
        self.num_bytes = 4 * sum(each.numel() for each in network.module.parameters())
        self._args, self._inputs = args, inputs
        self._requests: dict[int, Any] = {}
        self._seconds: dict[int, float] = {}
        self._parts: dict[int, tuple[int, ...]] = {}

    def add(self, rows: int, request: Any) -> float:
        """Another size. Seconds that a call of it takes."""
        self._requests[rows] = request
        [self._seconds[rows]] = _least_seconds(self._call_of(rows))
        return self._seconds[rows]

    def drop(self, rows: int) -> None:
        """Forget a size."""
        del self._requests[rows], self._seconds[rows]

    @torch.inference_mode()
    def times_as_fast(self, rows: int) -> float:
        """As torch with so many rows."""
        args, inputs = with_rows(self._args, rows), with_rows(self._inputs, rows)
        ours, theirs = _least_seconds(
            self._call_of(rows), lambda: self.network.in_torch(*args, return_dict=False, **inputs)
        )
        return theirs / ours

    def _call_of(self, rows: int) -> Callable[[], object]:
        inputs = [torch.zeros(rows, *shape) for shape in self.shapes]
        return lambda: _infer(self._requests[rows], inputs)

    def __call__(self, *args: torch.Tensor, return_dict: bool, **inputs: Any) -> tuple[torch.Tensor, ...]:
        given = self.network.flat(*args, **inputs)
        if shapes_of(given) != self.shapes:
            return self.network.in_torch(*args, return_dict=return_dict, **inputs)
        num_rows = len(given[0])
        if num_rows not in self._parts:
            self._parts[num_rows] = cheapest_parts(num_rows, self._seconds)
        outs, begin = [], 0
        for rows in self._parts[num_rows]:
            outs.append(_infer(self._requests[rows], [_grown(each[begin : begin + rows], rows) for each in given]))
            begin += rows
        return (torch.cat(outs)[:num_rows],)

    def backend_for(self, latent_shape: tuple[int, ...], num_windows: int) -> str:
        is_compiled = num_windows == 1 and self.shapes[0] == latent_shape
        return _backend() if is_compiled else "torch"


@functools.cache
def _backend() -> str:
    return f"openvino {version('openvino')}"


def cheapest_parts(num_rows: int, seconds: Mapping[int, float]) -> tuple[int, ...]:
    """The sizes, largest first, that hold `num_rows` together in the least time. The last may have rows to spare."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for count in range(1, num_rows + 1):
        ways = ((best[max(0, count - size)], size, cost) for size, cost in seconds.items())
        best.append(min((before + cost, (*parts, size)) for (before, parts), size, cost in ways))
    return tuple(sorted(best[num_rows][1], reverse=True))


class _UNet:
    """Sinusoids of timesteps and sizes are drawn in torch: in bfloat16 their arguments would lose whole turns."""

    name = "UNet"

    def __init__(self, unet: Any) -> None:
        self.module = unet
        self.in_torch: Forward = unet

    def flat(self, *args: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        x, timestep = args
        tensors = [x, self.module.get_time_embed(x, timestep), inputs["encoder_hidden_states"]]
        if added := inputs.get("added_cond_kwargs"):
            sizes = self.module.add_time_proj(added["time_ids"].flatten())
            tensors += [added["text_embeds"], sizes.reshape(len(x), -1)]
        return tuple(tensors)

    def traceable(self) -> torch.nn.Module:
        return _TraceableUNet(self.module)


class _TraceableUNet(torch.nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet).float()
        self.unet.get_time_embed = lambda sample, timestep: timestep
        self.unet.add_time_proj = torch.nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor, hidden: torch.Tensor, *added: torch.Tensor) -> torch.Tensor:
        more = {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}
        out: torch.Tensor = self.unet(x, time, encoder_hidden_states=hidden, return_dict=False, **more)[0]
        return out


class _Decoder:
    name = "decoder"

    def __init__(self, vae: Any) -> None:
        self.module = vae
        self.in_torch: Forward = vae.decode

    def flat(self, *args: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        return args

    def traceable(self) -> torch.nn.Module:
        return _TraceableDecoder(self.module)


class _TraceableDecoder(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae).float()

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.vae.decode(latent, return_dict=False)[0]
        return out


def _converted(compiled: Compiled) -> Any:
    """The network as a graph in float32, whatever the dtype of its weights: the plugin lowers it itself, and knows
    where not to. By the frontend, since `openvino.convert_model` tells its makers about every call."""
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

    inputs = tuple(each.float() for each in compiled.example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(
            compiled.network.traceable(), example_input=inputs, trace_kwargs={"check_trace": False}
        )
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def _infer(request: Any, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    arrays = [each.float().contiguous().numpy() for each in inputs]
    return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])


def _grown(x: torch.Tensor, rows: int) -> torch.Tensor:
    """With its last row again as often as it takes."""
    missing = rows - len(x)
    return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def _least_seconds(*calls: Callable[[], object]) -> list[float]:
    """Of a few of each, after one to warm up: other work only ever adds. By turns, so that it meets all of them."""
    for call in calls:
        call()
    rounds: list[list[float]] = []
    while not rounds or (len(rounds) < 2 * NUM_REPEATS and sum(map(sum, rounds)) < PROBE_SECONDS * len(calls)):
        rounds.append([_seconds(call) for call in calls])
    return [min(each) for each in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

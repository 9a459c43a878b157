"""Seeded mixed requests, and closed-loop clients that send them."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import httpx2

from benchmarks.servers import Target

PROMPTS = (
    "a photo of an astronaut riding a horse on mars.",
    "a red circle",
    "a blue house next to a green tree in a meadow",
    "three yellow stars at night",
    "a cat on a boat at sea",
    "a purple heart above a white square",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's fate. Seconds on the client's clock."""

    latency_seconds: float
    run_time_ms: float
    num_steps: int
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a round of load came to."""

    seconds: float
    answers: tuple[Answer, ...]

    @property
    def images_per_second(self) -> float:
        return sum(answer.is_ok for answer in self.answers) / self.seconds

    @property
    def num_failures(self) -> int:
        return sum(not answer.is_ok for answer in self.answers)

    def latency(self, quantile: float) -> float:
        return quantile_of([answer.latency_seconds for answer in self.answers], quantile)

    @property
    def short_latencies(self) -> list[float]:
        """Of those with the fewest steps, a third of all."""
        shortest = sorted(self.answers, key=lambda answer: answer.num_steps)[: max(1, len(self.answers) // 3)]
        return [answer.latency_seconds for answer in shortest]


def quantile_of(values: Iterable[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * quantile), len(ordered) - 1)]


def pooled_and_spread(rounds: Sequence[Sequence[float]], quantile: float) -> str:
    """The quantile of all values together, and the least and most that it is in one round."""
    each = [quantile_of(values, quantile) for values in rounds]
    pooled = quantile_of([value for values in rounds for value in values], quantile)
    return f"{pooled:.3g} ({min(each):.3g} to {max(each):.3g})"


def median_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def mixed_requests(count: int, *, seed: int, side: int = 512) -> list[dict[str, object]]:
    """Every request with its own steps, guidance, sampler, negative prompt and seed."""
    rng = random.Random(seed)
    samplers = ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
    return [
        {
            "prompt": rng.choice(PROMPTS),
            "negative_prompt": rng.choice(("", "no sky", "red")),
            "num_inference_steps": rng.randint(10, 40),
            "guidance_scale": rng.choice((1.0, 3.0, 5.0, 7.5, 9.0)),
            "sampler": rng.choice(samplers),
            "seed": rng.randrange(2**31),
            "height": side,
            "width": side,
        }
        for _ in range(count)
    ]


def closed_loop(target: Target, requests: Sequence[dict[str, object]], *, num_clients: int) -> Report:
    """`num_clients` threads, each sending its next request when the last was answered, until all are."""
    waiting, answers, lock = list(requests), [], threading.Lock()

    def work() -> None:
        with httpx2.Client(base_url=target.url, timeout=600, trust_env=False) as client:
            while True:
                with lock:
                    if not waiting:
                        return
                    request = waiting.pop(0)
                answers.append(send(client, target, request))

    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Report(time.perf_counter() - began, tuple(answers))


def open_loop(target: Target, requests: Sequence[dict[str, object]], *, per_second: float, seed: int) -> Report:
    """Poisson arrivals that wait for nobody: each request is sent at its time by a thread of its own."""
    rng = random.Random(seed)
    answers: list[Answer] = []

    def work(request: dict[str, object]) -> None:
        with httpx2.Client(base_url=target.url, timeout=600, trust_env=False) as client:
            answers.append(send(client, target, request))

    threads = []
    began = due = time.perf_counter()
    for request in requests:
        due += rng.expovariate(per_second)
        time.sleep(max(0.0, due - time.perf_counter()))
        threads.append(threading.Thread(target=work, args=(request,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return Report(time.perf_counter() - began, tuple(answers))


def send(client: httpx2.Client, target: Target, request: dict[str, object]) -> Answer:
    began = time.perf_counter()
    answer = client.post("/pinhole/predict", json=request, headers={"Authorization": target.key})
    return fate(request, answer.status_code, answer.content, latency=time.perf_counter() - began)


def fate(request: dict[str, object], status: int, body: bytes, *, latency: float) -> Answer:
    """What became of a request that was answered with this."""
    answer = json.loads(body) if status == 200 else {"result": []}
    is_ok = len(answer["result"]) == request.get("num_images_per_prompt", 1)
    run_time_ms = float(answer["run_time_ms"]) if is_ok else 0.0
    return Answer(latency, run_time_ms, int(str(request["num_inference_steps"])), is_ok)

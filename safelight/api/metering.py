"""Counts requests, and puts together what /metrics says: this process's own counts, and what the store
knows of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from safelight import metrics
from safelight.metrics import STEP_BUCKETS, Metric
from safelight.store.measures import Measures, RunEnd, WorkerFigures
from safelight.version import __version__

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A method is any word that a caller likes; every other is counted as OTHER."""

FRESH_SECONDS = 1.0
"""Scrapes within this time share one look into the store."""


class Measure(Protocol):
    """Reads the figures of the whole server, and the runs that ended after `since`."""

    def __call__(self, *, since: float | None) -> Awaitable[Measures]: ...


class Meter:
    """The metrics of one API process. Runs are counted from its first scrape on, each once."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(metrics.HTTP_REQUESTS)
        self._durations = self._histogram(metrics.HTTP_DURATION)
        self._open = Gauge(metrics.HTTP_OPEN.name, metrics.HTTP_OPEN.meaning, registry=self._registry)
        self._attempts = self._counter(metrics.WEBHOOK_ATTEMPTS)
        self._ended = self._counter(metrics.ENDED_RUNS)
        self._images = self._counter(metrics.FINISHED_IMAGES)
        self._device_seconds = self._counter(metrics.DEVICE_SECONDS)
        self._waits = self._histogram(metrics.RUN_WAIT)
        self._run_durations = self._histogram(metrics.RUN_DURATION)
        self._seen = _Seen()
        self._registry.register(self._seen)
        ProcessCollector(registry=self._registry)
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request that was answered."""
        method = method if method in KNOWN_METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)

    def count_open(self, change: int) -> None:
        """One more request is being answered, or one less."""
        self._open.inc(change)

    def count_attempt(self, status_code: int | None) -> None:
        """A try to deliver a webhook, and what came back."""
        self._attempts.labels("none" if status_code is None else f"{status_code // 100}xx").inc()

    async def expose(self, measure: Measure, *, accept: str) -> tuple[bytes, str]:
        """Everything in a format of `accept`, and the media type of that."""
        async with self._looking:
            if time.monotonic() - self._looked_at > FRESH_SECONDS:
                before = self._seen.measures
                self._seen.measures = await measure(since=before.until if before else None)
                self._looked_at = time.monotonic()
                for end in self._seen.measures.ends:
                    self._count_end(end)
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def _count_end(self, end: RunEnd) -> None:
        self._ended.labels(end.deployment, end.status.value, end.code).inc()
        self._images.labels(end.deployment).inc(end.num_images)
        self._device_seconds.labels(end.deployment).inc(end.device_seconds)
        self._run_durations.labels(end.deployment).observe(end.seconds)
        if end.wait_seconds is not None:
            self._waits.labels(end.deployment).observe(end.wait_seconds)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self._registry)


class _Seen(Collector):
    """What the last look into the store saw, as families of metrics."""

    def __init__(self) -> None:
        self.measures: Measures | None = None

    def collect(self) -> Iterator[Family]:
        yield _gauge(metrics.BUILD_INFO, [((__version__,), 1.0)])
        if self.measures is None:
            return
        yield from _of_backlogs(self.measures)
        yield from _of_workers(self.measures.workers)
        yield _gauge(metrics.PENDING_DELIVERIES, [((), self.measures.num_pending_deliveries)])
        yield _gauge(metrics.OVERDUE_DELIVERY, [((), self.measures.overdue_seconds)])


Values = Iterable[tuple[tuple[str, ...], float]]


def _gauge(metric: Metric, values: Values) -> Family:
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _counter(metric: Metric, values: Values) -> Family:
    family = CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _of_backlogs(measures: Measures) -> Iterator[Family]:
    each = measures.backlogs
    yield _gauge(metrics.QUEUED_RUNS, [((of.deployment,), of.num_queued) for of in each])
    yield _gauge(metrics.RUNNING_RUNS, [((of.deployment,), of.num_running) for of in each])
    yield _gauge(metrics.OLDEST_QUEUED, [((of.deployment,), of.oldest_queued_seconds) for of in each])


def _of_workers(workers: Iterable[WorkerFigures]) -> Iterator[Family]:
    each = [((worker.worker_id,), worker) for worker in workers]
    yield _gauge(metrics.WORKER_SILENCE, [(name, worker.silent_seconds) for name, worker in each])
    yield _gauge(metrics.RESIDENT_IMAGES, [(name, worker.engine.num_resident_images) for name, worker in each])
    yield _counter(metrics.BUSY_SECONDS, [(name, worker.engine.busy_seconds) for name, worker in each])
    yield _counter(metrics.BATCH_ROWS, [(name, worker.engine.num_rows) for name, worker in each])
    yield _counter(metrics.BATCH_PLACES, [(name, worker.engine.num_places) for name, worker in each])
    yield _counter(metrics.DECODED_IMAGES, [(name, worker.engine.num_decoded) for name, worker in each])
    yield _counter(metrics.DECODE_SECONDS, [(name, worker.engine.decode_seconds) for name, worker in each])
    steps = HistogramMetricFamily(metrics.STEP_DURATION.name, metrics.STEP_DURATION.meaning, labels=("worker",))
    for name, worker in each:
        steps.add_metric(name, _cumulated(worker.engine.step_counts), worker.engine.step_seconds)
    yield steps


def _cumulated(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """As Prometheus wants them: each bucket counts all that fit into it."""
    buckets, total = [], 0
    for bound, count in zip((*map(str, STEP_BUCKETS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets

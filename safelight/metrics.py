"""The metrics of a server: every name, label and bucket in one place, and the figures that an engine
hands up. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """As Prometheus has them: a counter only grows and starts anew with its process."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is what a query says, with the unit and a counter's `_total` in it."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RUN_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)

_BY_DEPLOYMENT = ("deployment",)
_BY_WORKER = ("worker",)

BUILD_INFO = Metric("safelight_build_info", Kind.GAUGE, "Always 1; the label is the version that runs.", ("version",))

QUEUED_RUNS = Metric("safelight_queued_runs", Kind.GAUGE, "Runs that wait for a worker.", _BY_DEPLOYMENT)
OLDEST_QUEUED = Metric(
    "safelight_oldest_queued_run_seconds", Kind.GAUGE, "How long the first run in the queue has waited.", _BY_DEPLOYMENT
)
RUNNING_RUNS = Metric("safelight_running_runs", Kind.GAUGE, "Runs that a worker holds.", _BY_DEPLOYMENT)
ENDED_RUNS = Metric(
    "safelight_ended_runs_total",
    Kind.COUNTER,
    "Runs that ended; `code` says why one failed and is empty for the others.",
    ("deployment", "status", "code"),
)
FINISHED_IMAGES = Metric(
    "safelight_finished_images_total", Kind.COUNTER, "Finished images of ended runs.", _BY_DEPLOYMENT
)
DEVICE_SECONDS = Metric(
    "safelight_device_seconds_total",
    Kind.COUNTER,
    "Device time of ended runs; runs that shared a batch share its time.",
    _BY_DEPLOYMENT,
)
RUN_WAIT = Metric(
    "safelight_run_wait_seconds", Kind.HISTOGRAM, "From asked for to started.", _BY_DEPLOYMENT, RUN_BUCKETS
)
RUN_DURATION = Metric(
    "safelight_run_duration_seconds", Kind.HISTOGRAM, "From asked for to ended.", _BY_DEPLOYMENT, RUN_BUCKETS
)

WORKER_SILENCE = Metric(
    "safelight_worker_silence_seconds",
    Kind.GAUGE,
    "Since the worker was last heard of, stopped ones left out.",
    _BY_WORKER,
)
RESIDENT_IMAGES = Metric("safelight_resident_images", Kind.GAUGE, "Images under way in the engine.", _BY_WORKER)
BUSY_SECONDS = Metric(
    "safelight_device_busy_seconds_total",
    Kind.COUNTER,
    "Time in which the engine worked; its rate is the busy share of the device.",
    _BY_WORKER,
)
STEP_DURATION = Metric(
    "safelight_step_duration_seconds", Kind.HISTOGRAM, "One forward pass of a batch.", _BY_WORKER, STEP_BUCKETS
)
BATCH_ROWS = Metric("safelight_batch_rows_total", Kind.COUNTER, "Rows that went through the denoiser.", _BY_WORKER)
BATCH_PLACES = Metric(
    "safelight_batch_places_total",
    Kind.COUNTER,
    "Rows there was room for in the same batches; rows by places is the batch fill.",
    _BY_WORKER,
)
DECODED_IMAGES = Metric("safelight_decoded_images_total", Kind.COUNTER, "Images that were decoded.", _BY_WORKER)
DECODE_SECONDS = Metric("safelight_decode_seconds_total", Kind.COUNTER, "Time spent on decoding.", _BY_WORKER)

WEBHOOK_ATTEMPTS = Metric(
    "safelight_webhook_attempts_total",
    Kind.COUNTER,
    "Tries to deliver; `answer` is 2xx, 3xx, 4xx, 5xx, or none when no answer came.",
    ("answer",),
)
PENDING_DELIVERIES = Metric("safelight_pending_deliveries", Kind.GAUGE, "Deliveries that have not arrived yet.")
OVERDUE_DELIVERY = Metric(
    "safelight_overdue_delivery_seconds", Kind.GAUGE, "How long the delivery that waits longest has been due; else 0."
)

HTTP_REQUESTS = Metric(
    "safelight_http_requests_total",
    Kind.COUNTER,
    "Requests that were answered; `route` is the template of the path, `-` when there is none.",
    ("method", "route", "status"),
)
HTTP_DURATION = Metric(
    "safelight_http_request_duration_seconds",
    Kind.HISTOGRAM,
    "From a request's head to the end of its answer.",
    ("method", "route"),
    REQUEST_BUCKETS,
)
HTTP_OPEN = Metric("safelight_http_open_requests", Kind.GAUGE, "Requests that are being answered.")

METRICS = (
    *(BUILD_INFO, QUEUED_RUNS, OLDEST_QUEUED, RUNNING_RUNS, ENDED_RUNS, FINISHED_IMAGES, DEVICE_SECONDS, RUN_WAIT),
    *(RUN_DURATION, WORKER_SILENCE, RESIDENT_IMAGES, BUSY_SECONDS, STEP_DURATION, BATCH_ROWS, BATCH_PLACES),
    *(DECODED_IMAGES, DECODE_SECONDS, WEBHOOK_ATTEMPTS, PENDING_DELIVERIES, OVERDUE_DELIVERY, HTTP_REQUESTS),
    *(HTTP_DURATION, HTTP_OPEN),
)
"""All of them, in the order of docs/metrics.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """What one engine has done since it started: sums, but for the images under way.

    `step_counts[i]` counts the steps of at most STEP_BUCKETS[i] seconds that fit no smaller bucket; the last one counts
    those over all bounds.
    """

    num_resident_images: int = 0
    busy_seconds: float = 0.0
    step_seconds: float = 0.0
    step_counts: tuple[int, ...] = (0,) * (len(STEP_BUCKETS) + 1)
    num_rows: int = 0
    num_places: int = 0
    num_decoded: int = 0
    decode_seconds: float = 0.0

"""What older databases hold: for each table that there ever was, rows with a value in every column.

Columns and tables that a schema does not know yet are left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

PARAMS = '{"prompt": "a lamp", "height": 64, "width": 72, "num_inference_steps": 10, "num_images_per_prompt": 2}'
PROVENANCE = '{"safelight": "0.0.9", "torch": "2.10.0", "device": "cpu", "dtype": "float32", "num_threads": 2}'
NUM_QUEUED = 10
ENDS = ("succeeded", "succeeded", "failed", "cancelled", "running")
"""What becomes of those that do not wait, in turn; the pictures of the second have expired."""

Row = dict[str, Any]
Rows = Callable[[int], Iterable[Row]]


def run_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def _status(number: int) -> str:
    return "queued" if number < NUM_QUEUED else ENDS[number % len(ENDS)]


def _kinds(number: int) -> tuple[str, ...]:
    """What is told of a run."""
    status = _status(number)
    begun = {"queued": ("queued",), "running": ("queued", "started"), "succeeded": ("queued", "started", "image")}
    return begun.get(status, ("queued", "started")) + (() if status in ("queued", "running") else (status,))


def _runs(number: int) -> Iterable[Row]:
    status = _status(number)
    yield _ended(number, status) | {
        "id": run_id(number),
        "project": "p",
        "key_id": "k",
        "deployment": "d",
        "deployment_version": 1,
        "params": PARAMS,
        "status": status,
        "created_at": 1000.0 + number,
        "started_at": None if status == "queued" else 1000.5 + number,
        "worker_id": None if status == "queued" else "w",
        "lease_ends_at": 9e9 if status == "running" else None,
        "fence": 0 if status == "queued" else 1,
        "num_attempts": 0 if status == "queued" else 1,
        "num_events": len(_kinds(number)),
        "is_cancel_requested": status == "cancelled",
        "steps_done": 3 if status == "running" else 0,
        "steps_total": 20 if status == "running" else 0,
        "eta_seconds": 1.5 if status == "running" else None,
        "webhook_endpoint": "https://EXAMPLE.com/hook",
        "idempotency_key": f"key-{number}",
        "body_digest": "digest",
        "warnings": '["the prompt was cut"]',
        "num_images": 2,
        "pixel_steps": 92160,
        "weight": 1.0,
        "deadline_at": 9e9,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "rank": -2 if number == NUM_QUEUED - 1 else 0,
    }


def _ended(number: int, status: str) -> Row:
    """What of a run is known when it has ended."""
    has_ended, has_failed = status not in ("queued", "running"), status == "failed"
    return {
        "ended_at": 1001.5 + number if has_ended else None,
        "run_time_ms": 12.5 if has_ended else None,
        "device_ms": 10.25 if has_ended else None,
        "error_code": "engine_error" if has_failed else None,
        "error_message": "it broke" if has_failed else None,
        "images_expired_at": 2000.0 if _has_expired(number) else None,
        "provenance": PROVENANCE if has_ended else None,
    }


def _has_expired(number: int) -> bool:
    return number >= NUM_QUEUED and number % len(ENDS) == 1


def _events(number: int) -> Iterable[Row]:
    for sequence, kind in enumerate(_kinds(number), 1):
        yield {
            "run_id": run_id(number),
            "sequence": sequence,
            "kind": kind,
            "at": 1000.0 + number,
            "image_index": 0 if kind == "image" else None,
            "error_code": "engine_error" if kind == "failed" else None,
            "error_message": "it broke" if kind == "failed" else None,
        }


def _images(number: int) -> Iterable[Row]:
    row = {"run_id": run_id(number), "image_index": 0, "seed": 2**53 - 1, "output_format": "png"}
    if _status(number) == "succeeded" and not _has_expired(number):
        yield row | {"path": f"00/{run_id(number)}/0-1.png", "num_bytes": 3, "sha256": "abc"}


def _inputs(number: int) -> Iterable[Row]:
    if number % 10 == 0:
        row = {"run_id": run_id(number), "name": "init_image", "num_bytes": 2**33, "sha256": "abc"}
        yield row | {"path": f"00/{run_id(number)}/init_image.png"}


def _deliveries(number: int) -> Iterable[Row]:
    status = ("pending", "delivered", "failed")[number % 3]
    row = {
        "event_id": f"event-{number}",
        "run_id": run_id(number),
        "project": "p",
        "host": "example.com",
        "status": status,
        "reason": "the endpoint was disabled" if status == "failed" else "",
        "created_at": 1000.0 + number,
        "next_attempt_at": 9e9 if status == "pending" else None,
        "num_attempts": 1,
        "num_attempts_before_resend": 0,
        "told": '{"result": []}',
    }
    yield row | {"id": f"delivery-{number:05d}", "endpoint_id": None, "url": "https://EXAMPLE.com/hook"}
    if number % 2 == 0:
        yield row | {"id": f"told-{number:05d}", "endpoint_id": "e", "url": ENDPOINT["url"]}


def _attempts(number: int) -> Iterable[Row]:
    is_answered = number % 2 == 0
    yield {
        "delivery_id": f"delivery-{number:05d}",
        "number": 1,
        "at": 1002.0,
        "duration_ms": 3.5,
        "status_code": 500 if is_answered else None,
        "error": None if is_answered else "connect_failed",
        "response_excerpt": "oh" if is_answered else "",
    }


def _spent(number: int) -> Iterable[Row]:
    """Runs that are gone: some of them one by one, some as a day."""
    figures = {"num_runs": 1 + number, "num_images": 3, "pixel_steps": 2**40, "num_finished": 1, "device_ms": 7.5}
    if number < 5:
        is_day = number % 2 == 0
        yield figures | {
            "key_id": "k",
            "deployment": "d",
            "at": 86400.0 * (number + 1) + (0 if is_day else 1.5),
            "is_day": is_day,
        }


def _once(*rows: Row) -> Rows:
    return lambda number: rows if number == 0 else ()


DEPLOYMENT = {"name": "d", "version": 1, "model": "m", "defaults": "{}", "limits": "{}", "embed_metadata": True}
DEPLOYMENT |= {"created_at": 1.0, "serving": '{"pin": true}', "revision": "a" * 40, "undeployed_at": None}
KEY = {"id": "k", "name": "laptop", "prefix": "sl_live_x", "digest": "x", "project": "p", "scopes": "predict"}
KEY |= {"created_at": 1.0, "expires_at": 9e9, "revoked_at": None, "last_used_at": 5.0, "origin_id": "k"}
ENDPOINT = {
    "id": "e",
    "project": "p",
    "url": "https://example.com/",
    "host": "example.com",
    "events": "failed succeeded",
}
ENDPOINT |= {"status": "enabled", "status_reason": "", "created_at": 1.0, "failing_since": 900.0, "secret_number": 2}
GONE = {"id": "f", "url": "https://example.com/gone", "events": "cancelled", "created_at": 2.0, "secret_number": 1}
GONE |= {"key_id": "k"}
PLACEMENT = {"worker_id": "w", "name": "d", "version": 1, "status": "active", "reason": "", "heard_at": 3.0}

OLD: Mapping[str, Rows] = {
    "deployments": _once(DEPLOYMENT, DEPLOYMENT | {"name": "before", "undeployed_at": 2.0}),
    "keys": _once(
        KEY | {"allowance": '{"weight": 2.0}'},
        KEY | {"id": "l", "name": "lost", "revoked_at": 2.0, "origin_id": "l", "allowance": None},
    ),
    "runs": _runs,
    "events": _events,
    "images": _images,
    "inputs": _inputs,
    "webhook_endpoints": _once(
        ENDPOINT, ENDPOINT | GONE | {"status": "disabled", "status_reason": "it answered 410 Gone"}
    ),
    "endpoint_secrets": _once(
        {"endpoint_id": "e", "number": 1, "created_at": 1.0, "ends_at": 9e9},
        {"endpoint_id": "e", "number": 2, "created_at": 2.0, "ends_at": None},
        {"endpoint_id": "f", "number": 1, "created_at": 2.0, "ends_at": None},
    ),
    "project_secrets": _once(
        {"project": "p", "number": 1, "created_at": 1.0, "ends_at": 9e9},
        {"project": "p", "number": 2, "created_at": 2.0, "ends_at": None},
    ),
    "deliveries": _deliveries,
    "attempts": _attempts,
    "placements": _once(PLACEMENT | {"load_seconds": 4.5, "max_pixels": 2**32}),
    "spent": _spent,
    "workers": _once({"worker_id": "w", "heard_at": 3.0, "figures": "{}"}),
}

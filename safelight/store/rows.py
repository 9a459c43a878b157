"""From rows to the words of the house and back. JSON text is read leniently, so that either side may be
the newer one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Row

from safelight.deployments import Defaults, Deployment, Limits, Serving
from safelight.keys import Allowance, Key, Scope
from safelight.runs import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    EndpointStatus,
    ImageRecord,
    LoraUse,
    OutputFormat,
    Provenance,
    Run,
    RunError,
    RunEvent,
    RunEventKind,
    RunParams,
    RunStatus,
    SamplerName,
    Spacing,
    WebhookEndpoint,
)

T = TypeVar("T", RunParams, Defaults, Limits, Serving, Allowance, Provenance)

ENUMS: Mapping[str, Callable[[Any], Any]] = {
    "sampler": SamplerName,
    "spacing": Spacing,
    "output_format": OutputFormat,
    "loras": lambda uses: tuple(LoraUse(**use) for use in uses),
    "lora_files": lambda files: tuple((name, file) for name, file in files),
}
"""The fields of the above that are more than JSON's own kinds."""


_ENCODER = json.JSONEncoder(allow_nan=False, default=asdict)


def to_json(value: RunParams | Defaults | Limits | Serving | Allowance | Provenance) -> str:
    # `asdict` for all of it would copy every field by itself.
    return _ENCODER.encode({name: getattr(value, name) for name in value.__dataclass_fields__})


def from_json(kind: type[T], text: str) -> T:
    """A `kind` from its JSON: keys it does not know are ignored, keys that are missing take their defaults."""
    known = {name: value for name, value in json.loads(text).items() if name in kind.__dataclass_fields__}
    return kind(**{name: ENUMS[name](value) if name in ENUMS else value for name, value in known.items()})


def run_from(row: Row[Any], images: Sequence[Row[Any]] = ()) -> Run:
    """A run from a row of `runs` and its rows of `images`."""
    return Run(
        id=row.id,
        project=row.project,
        key_id=row.key_id,
        deployment=row.deployment,
        deployment_version=row.deployment_version,
        params=from_json(RunParams, row.params),
        status=RunStatus(row.status),
        created_at=row.created_at,
        weight=1.0 if row.weight is None else row.weight,
        priority=-row.rank,
        deadline_at=row.deadline_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        run_time_ms=row.run_time_ms,
        fence=row.fence,
        num_attempts=row.num_attempts,
        is_cancel_requested=row.is_cancel_requested,
        steps_done=row.steps_done,
        steps_total=row.steps_total,
        eta_seconds=row.eta_seconds,
        webhook_endpoint=row.webhook_endpoint,
        warnings=tuple(json.loads(row.warnings)),
        error=error_from(row),
        # Their rows stay, for whoever counts what was drawn.
        images=() if row.images_expired_at else tuple(image_from(image) for image in images),
        images_expired_at=row.images_expired_at,
        provenance=None if row.provenance is None else from_json(Provenance, row.provenance),
        traceparent=row.traceparent,
    )


def error_from(row: Row[Any]) -> RunError | None:
    return None if row.error_code is None else RunError(row.error_code, row.error_message or "")


def image_from(row: Row[Any]) -> ImageRecord:
    return ImageRecord(
        index=row.image_index,
        seed=row.seed,
        output_format=OutputFormat(row.output_format),
        path=row.path,
        num_bytes=row.num_bytes,
        sha256=row.sha256,
    )


def event_from(row: Row[Any]) -> RunEvent:
    return RunEvent(
        run_id=row.run_id,
        kind=RunEventKind(row.kind),
        at=row.at,
        sequence=row.sequence,
        image_index=row.image_index,
        error=error_from(row),
    )


def delivery_from(row: Row[Any], attempts: Sequence[Row[Any]] = ()) -> Delivery:
    return Delivery(
        id=row.id,
        event_id=row.event_id,
        run_id=row.run_id,
        project=row.project,
        url=row.url,
        status=DeliveryStatus(row.status),
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at,
        num_attempts=row.num_attempts,
        endpoint_id=row.endpoint_id,
        host=row.host,
        reason=row.reason,
        told=row.told,
        attempts=tuple(_attempt_from(attempt) for attempt in attempts),
    )


def endpoint_from(row: Row[Any], *, previous_secret_ends_at: float | None = None) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=row.id,
        project=row.project,
        url=row.url,
        events=frozenset(RunStatus(event) for event in row.events.split()),
        status=EndpointStatus(row.status),
        status_reason=row.status_reason,
        created_at=row.created_at,
        failing_since=row.failing_since,
        key_id=row.key_id,
        previous_secret_ends_at=previous_secret_ends_at,
    )


def _attempt_from(row: Row[Any]) -> DeliveryAttempt:
    return DeliveryAttempt(
        number=row.number,
        at=row.at,
        duration_ms=row.duration_ms,
        status_code=row.status_code,
        error=row.error,
        response_excerpt=row.response_excerpt,
    )


def key_from(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        project=row.project,
        scopes=frozenset(Scope(scope) for scope in row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        allowance=allowance_from(row.allowance),
    )


@functools.lru_cache(maxsize=256)
def allowance_from(text: str | None) -> Allowance:
    """Keys of before there were allowances have none written."""
    return Allowance() if text is None else from_json(Allowance, text)


def deployment_from(row: Row[Any]) -> Deployment:
    """A deployment as it was deployed; its status is not in the row."""
    return Deployment(
        name=row.name,
        version=row.version,
        model=row.model,
        revision=row.revision,
        defaults=from_json(Defaults, row.defaults),
        limits=from_json(Limits, row.limits),
        serving=Serving() if row.serving is None else from_json(Serving, row.serving),
        embed_metadata=row.embed_metadata,
        created_at=row.created_at,
    )

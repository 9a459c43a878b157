"""How webhook endpoints and deliveries look as JSON, and the bodies that change them."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safelight.api.views import Time, View, iso_or_none, to_iso
from safelight.errors import FieldError, InvalidFields
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus, EndpointStatus, RunStatus, WebhookEndpoint
from safelight.store import ProjectSecret

End = Literal[RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED]

T = TypeVar("T", bound=BaseModel)


class EndpointView(View):
    """A registered webhook endpoint. Its secrets are shown when they are made, and never again here."""

    id: str
    url: str
    events: list[End]
    key_id: str | None = Field(description="The first of the line of keys whose runs it is told of; null: all keys.")
    status: EndpointStatus
    status_reason: str = Field(description="Why it is disabled; empty while it is enabled.")
    created_at: Time
    failing_since: Time | None = Field(
        description="The first failure after the last success; null: the last try went well."
    )
    previous_secret_ends_at: Time | None = Field(description="Until when a rotated secret goes on signing too.")


class EndpointList(View):
    endpoints: list[EndpointView]


class EndpointWithSecret(View):
    """An endpoint and its newest secret, shown this once."""

    endpoint: EndpointView
    secret: str = Field(examples=["whsec_..."])


class ProjectSecretView(View):
    """The newest secret of the key's project."""

    project: str
    secret: str = Field(examples=["whsec_..."])
    previous_secret_ends_at: Time | None = Field(description="Until when a rotated secret goes on signing too.")


class AttemptView(View):
    number: int
    at: Time
    duration_ms: float
    status_code: int | None
    error: str | None
    response_excerpt: str | None = Field(description="Up to 1 KiB of the answer; null for keys without `admin`.")


class DeliveryView(View):
    """The end of one run on its way to one address. `event_id` is what the receiver gets as `webhook-id`."""

    id: str
    event_id: str
    run_id: str
    endpoint_id: str | None = Field(description="null: the run itself named the URL.")
    url: str
    status: DeliveryStatus
    reason: str = Field(description="Why it failed, where no answer ended it; otherwise empty.")
    created_at: Time
    next_attempt_at: Time | None
    num_attempts: int
    attempts: list[AttemptView]


class DeliveryPage(View):
    deliveries: list[DeliveryView]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


class ResentAnswer(View):
    num_due: int = Field(description="How many deliveries are due again.")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewEndpointBody(_Body):
    url: str = Field(description="An http(s) URL that the server may call.", json_schema_extra={"format": "uri"})
    events: list[End] | None = Field(None, min_length=1, description="Which ends of runs to tell of; null: all.")
    own_runs_only: bool = Field(False, description="Only runs of the key that registers it, and of its successors.")


class ChangedEndpointBody(_Body):
    """null, or left out: stays as it is."""

    url: str | None = Field(None, description="What waits goes there too.", json_schema_extra={"format": "uri"})
    events: list[End] | None = Field(None, min_length=1)
    status: EndpointStatus | None = Field(None, description="Disabling ends what is on its way as failed.")


class RotateBody(_Body):
    overlap_hours: float = Field(24.0, ge=0, le=168, description="How long the secret before goes on signing too.")


class ResendBody(_Body):
    since: str = Field(description="ISO 8601; UTC unless it says otherwise.", json_schema_extra={"format": "date-time"})
    include_delivered: bool = Field(False, description="Also what arrived: the receiver lost it.")


def _schemas() -> dict[str, Any]:
    bodies: tuple[type[_Body], ...] = (NewEndpointBody, ChangedEndpointBody, RotateBody, ResendBody)
    found = {body.__name__: body.model_json_schema(ref_template="#/components/schemas/{model}") for body in bodies}
    for schema in found.values():
        # What they refer to, the views refer to as well.
        schema.pop("$defs", None)
    return found


WEBHOOK_BODIES: dict[str, Any] = _schemas()
"""The schemas of the bodies by name."""


def read_as(kind: type[T], body: dict[str, object]) -> T:
    """A JSON object as a body of this kind. Raises InvalidFields with every wrong field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        wrong = [FieldError(str(each["loc"][0]), str(each["msg"])) for each in error.errors()]
        raise InvalidFields(wrong) from error


def endpoint_view(endpoint: WebhookEndpoint) -> EndpointView:
    """An endpoint as callers see it."""
    return EndpointView(
        id=endpoint.id,
        url=endpoint.url,
        events=[RunStatus(event) for event in sorted(endpoint.events)],
        key_id=endpoint.key_id,
        status=endpoint.status,
        status_reason=endpoint.status_reason,
        created_at=to_iso(endpoint.created_at),
        failing_since=iso_or_none(endpoint.failing_since),
        previous_secret_ends_at=iso_or_none(endpoint.previous_secret_ends_at),
    )


def project_secret_view(secret: ProjectSecret) -> ProjectSecretView:
    """A project's secret as administrators see it."""
    return ProjectSecretView(
        project=secret.project,
        secret=secret.secret,
        previous_secret_ends_at=iso_or_none(secret.previous_ends_at),
    )


def delivery_view(delivery: Delivery, *, with_excerpts: bool) -> DeliveryView:
    """A delivery as callers see it."""
    return DeliveryView(
        id=delivery.id,
        event_id=delivery.event_id,
        run_id=delivery.run_id,
        endpoint_id=delivery.endpoint_id,
        url=delivery.url,
        status=delivery.status,
        reason=delivery.reason,
        created_at=to_iso(delivery.created_at),
        next_attempt_at=iso_or_none(delivery.next_attempt_at),
        num_attempts=delivery.num_attempts,
        attempts=[_attempt_view(attempt, with_excerpts=with_excerpts) for attempt in delivery.attempts],
    )


def _attempt_view(attempt: DeliveryAttempt, *, with_excerpts: bool) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        at=to_iso(attempt.at),
        duration_ms=attempt.duration_ms,
        status_code=attempt.status_code,
        error=attempt.error,
        # What another machine answered may be a secret of its own: who names a URL must not read it through this
        # server.
        response_excerpt=attempt.response_excerpt if with_excerpts else None,
    )

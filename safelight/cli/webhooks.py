"""`webhooks list|show|resend|secret`: what was delivered, what was not, and the secret receivers verify with."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from safelight.cli import endpoints
from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of, settings_of
from safelight.cli.output import explain, printable, say, say_json, say_table, when
from safelight.errors import FieldError, InvalidFields
from safelight.runs import DeliveryAttempt, DeliveryStatus

HELP = "Register webhook endpoints; list, show and resend deliveries; print signing secrets."

DeliveryArgument = Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery.")]


def list_deliveries(
    status: Annotated[DeliveryStatus | None, typer.Option(help="Only deliveries in this state.")] = None,
    run: Annotated[str | None, typer.Option(help="Only deliveries of this run.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only deliveries to this endpoint.")] = None,
    project: Annotated[str | None, typer.Option(help="Only deliveries of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, newest first."""
    found = with_store(
        existing_settings_of(config, data),
        lambda store: store.deliveries.list(
            project=project, run_id=run, endpoint_id=endpoint, status=status, limit=limit
        ),
    )
    if as_json:
        say_json(found)
        return
    rows = (
        (
            each.id,
            each.run_id,
            each.status,
            each.num_attempts,
            when(each.next_attempt_at),
            when(each.created_at),
            each.url,
        )
        for each in found
    )
    say_table(("DELIVERY", "RUN", "STATUS", "TRIES", "NEXT TRY", "CREATED", "URL"), rows, empty="no deliveries")


def show(
    delivery_id: DeliveryArgument, data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show one delivery with every attempt."""
    found = with_store(existing_settings_of(config, data), lambda store: store.deliveries.get(delivery_id))
    if as_json:
        say_json(found)
        return
    for name, value in asdict(found).items():
        if name not in {"attempts", "told"}:
            shown = when(value) if name.endswith("_at") else printable(value or "")
            say(f"{name.replace('_', ' ') + ':':<18}{shown}")
    rows = ((each.number, when(each.at), f"{each.duration_ms:.0f} ms", _answer(each)) for each in found.attempts)
    say_table(("TRY", "AT", "TOOK", "ANSWER"), rows, empty="it was not tried yet")


def resend(
    delivery_id: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", help="Id of one delivery.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Instead: everything that failed at this endpoint.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="With --endpoint: only what is of this time or later; local time.")
    ] = None,
    include_delivered: Annotated[
        bool, typer.Option("--include-delivered", help="With --endpoint: also what arrived.")
    ] = False,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Deliver again, with the same ids and the same bytes; a running server does it at once."""
    settings = existing_settings_of(config, data)
    if (delivery_id is None) == (endpoint is None):
        raise InvalidFields([FieldError("DELIVERY", "name one delivery, or an endpoint with --endpoint")])
    if delivery_id is not None:
        found = with_store(settings, lambda store: store.deliveries.resend(delivery_id))
        say(f"delivery {found.id} is due now")
        explain(f"watch it with `safelight webhooks show {found.id}`")
        return
    at = 0.0 if since is None else since.astimezone().timestamp()
    num_due = with_store(
        settings,
        lambda store: store.deliveries.resend_since(endpoint or "", at, include_delivered=include_delivered),
    )
    say(f"{num_due} deliveries are due now")


def secret(
    project: Annotated[str, typer.Option(help="Each project has its own.")] = "default",
    endpoint: Annotated[str | None, typer.Option(help="Instead: the secret of this registered endpoint.")] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the secret that deliveries are signed with, alone, on stdout."""
    settings = settings_of(config, data)
    if endpoint is None:
        newest = with_store(settings, lambda store: store.project_secrets.newest(project))
        endpoints.say_project_secret(newest, as_json=as_json)
        return
    found = with_store(settings, lambda store: store.webhook_endpoints.secrets(endpoint))[0]
    endpoints.say_secret(found, {"endpoint": endpoint, "secret": found}, as_json=as_json)


COMMANDS = endpoints.COMMANDS | {"list": list_deliveries, "show": show, "resend": resend, "secret": secret}


def _answer(attempt: DeliveryAttempt) -> str:
    if attempt.status_code is None:
        return attempt.error or "nothing"
    return f"{attempt.status_code} {attempt.response_excerpt[:80]}"

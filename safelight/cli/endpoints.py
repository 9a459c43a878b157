"""`webhooks endpoints|add|enable|disable|rotate|rm`: the registered webhook endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of, settings_of
from safelight.cli.output import explain, say, say_json, say_table, when
from safelight.config import Settings
from safelight.errors import FieldError, InvalidFields
from safelight.runs import ENDS, EndpointStatus, RunStatus, WebhookEndpoint

if TYPE_CHECKING:
    from safelight.store import ProjectSecret

EndpointArgument = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Id of the endpoint.")]

_HOUR_SECONDS = 3600.0


def list_endpoints(
    project: Annotated[str | None, typer.Option(help="Only endpoints of this project.")] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the registered endpoints, without their secrets."""
    found = with_store(existing_settings_of(config, data), lambda store: store.webhook_endpoints.list(project=project))
    if as_json:
        say_json(found)
        return
    rows = (
        (each.id, each.project, _state(each), ", ".join(sorted(each.events)), when(each.created_at), each.url)
        for each in found
    )
    columns = ("ENDPOINT", "PROJECT", "STATUS", "EVENTS", "CREATED", "URL")
    say_table(columns, rows, empty="there is no endpoint; register one with `safelight webhooks add URL`")


def add(
    url: Annotated[str, typer.Argument(help="An http(s) URL that the server may call.")],
    event: Annotated[
        list[RunStatus] | None, typer.Option(help="Tell of runs that end so; may be repeated. Unset: of every end.")
    ] = None,
    project: Annotated[str, typer.Option(help="Tell of the runs of this project.")] = "default",
    key: Annotated[
        str | None, typer.Option(help="Instead: tell of the runs of this key and its successors; its id or name.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register an endpoint and print its secret, alone, on stdout."""
    from safelight.webhooks.targets import TargetPolicy

    settings = settings_of(config, data)
    TargetPolicy(settings.webhooks.allowed_networks).check_url(url)
    events = frozenset(event) if event else ENDS
    made, secret = with_store(
        settings, lambda store: store.webhook_endpoints.create(url, project=project, events=events, key=key)
    )
    _say_endpoint_secret(made, secret, as_json=as_json)


def enable(endpoint_id: EndpointArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Send to an endpoint again."""
    _set_status(endpoint_id, EndpointStatus.ENABLED, existing_settings_of(config, data))
    explain(f"what it missed is sent by `safelight webhooks resend --endpoint {endpoint_id}`")


def disable(endpoint_id: EndpointArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Send nothing to an endpoint any more. What is on its way ends as failed, and can be resent."""
    _set_status(endpoint_id, EndpointStatus.DISABLED, existing_settings_of(config, data))


def rotate(
    endpoint_id: Annotated[str | None, typer.Argument(metavar="[ENDPOINT]", help="Id of the endpoint.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Instead: the secret for what requests of this project name as webhook_endpoint.")
    ] = None,
    overlap_hours: Annotated[
        float, typer.Option(min=0.0, max=168.0, help="The old secret signs too for so long; 0 for one that leaked.")
    ] = 24.0,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new secret and print it, alone, on stdout. Both sign until the overlap ends."""
    settings, overlap_seconds = existing_settings_of(config, data), overlap_hours * _HOUR_SECONDS
    if (endpoint_id is None) == (project is None):
        raise InvalidFields([FieldError("ENDPOINT", "name one endpoint, or a project with --project")])
    if project is not None:
        made = with_store(
            settings, lambda store: store.project_secrets.rotate(project, overlap_seconds=overlap_seconds)
        )
        say_project_secret(made, as_json=as_json)
        return
    rotated, secret = with_store(
        settings, lambda store: store.webhook_endpoints.rotate(endpoint_id or "", overlap_seconds=overlap_seconds)
    )
    _say_endpoint_secret(rotated, secret, as_json=as_json)
    _explain_overlap(rotated.previous_secret_ends_at)


def say_project_secret(secret: ProjectSecret, *, as_json: bool) -> None:
    """A project's secret alone on stdout, and what it is for beside it."""
    say_secret(secret.secret, secret, as_json=as_json)
    _explain_overlap(secret.previous_ends_at)


def say_secret(secret: str, document: object, *, as_json: bool) -> None:
    """The secret alone on stdout, or the document that it is part of; what it is for is said beside it."""
    if as_json:
        say_json(document)
    else:
        say(secret)
    explain(
        "give it to the receiver, which verifies each delivery with it (Standard Webhooks); keep it as you keep a key"
    )


def remove(endpoint_id: EndpointArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Remove an endpoint for good. Its deliveries stay in the log."""
    with_store(existing_settings_of(config, data), lambda store: store.webhook_endpoints.remove(endpoint_id))
    say(f"endpoint {endpoint_id} is removed")


COMMANDS = {
    "endpoints": list_endpoints,
    "add": add,
    "enable": enable,
    "disable": disable,
    "rotate": rotate,
    "rm": remove,
}


def _set_status(endpoint_id: str, status: EndpointStatus, settings: Settings) -> None:
    with_store(settings, lambda store: store.webhook_endpoints.update(endpoint_id, status=status))
    say(f"endpoint {endpoint_id} is {status}")


def _say_endpoint_secret(endpoint: WebhookEndpoint, secret: str, *, as_json: bool) -> None:
    say_secret(secret, {"endpoint": endpoint, "secret": secret}, as_json=as_json)
    explain(f"deliveries to endpoint {endpoint.id} ({endpoint.url}) are signed with it")


def _explain_overlap(previous_ends_at: float | None) -> None:
    if previous_ends_at is not None:
        explain(f"the secret before it goes on signing too until {when(previous_ends_at)}")


def _state(endpoint: WebhookEndpoint) -> str:
    if endpoint.status is EndpointStatus.DISABLED:
        return f"disabled: {endpoint.status_reason}"
    return "enabled" if endpoint.failing_since is None else f"failing since {when(endpoint.failing_since)}"

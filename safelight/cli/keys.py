"""`keys create|list|limit|rotate|usage|revoke`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of, settings_of
from safelight.cli.output import explain, say, say_json, say_table, when
from safelight.keys import DAY_SECONDS, MAX_LIFETIME_DAYS, MAX_OVERLAP_HOURS, Allowance, Key, Scope

if TYPE_CHECKING:
    from safelight.store import Store

HELP = "Make, list, limit, rotate and revoke API keys."

_HOUR_SECONDS = 3_600


def create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the machine that will hold it.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; may be repeated. Unset: predict. admin may do everything."),
    ] = None,
    project: Annotated[str, typer.Option(help="Keys see the runs of their own project only.")] = "default",
    expires_days: Annotated[
        float | None,
        typer.Option("--expires-days", min=0.0, max=MAX_LIFETIME_DAYS, help="Refuse the key after this many days."),
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, alone, on stdout. It is shown this once."""
    scopes = frozenset(scope or (Scope.PREDICT,))
    expires_at = None if expires_days is None else time.time() + expires_days * DAY_SECONDS
    key, secret = with_store(
        settings_of(config, data),
        lambda store: store.keys.create(name, project=project, scopes=scopes, expires_at=expires_at),
    )
    if as_json:
        say_json({"key": secret, "id": key.id, "name": key.name, "project": key.project, "scopes": key.scopes})
    else:
        say(secret)
    explain(f"key {key.name} may {_scopes(key)}; keep it now, it cannot be shown again")


def list_keys(data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    found = with_store(existing_settings_of(config, data), lambda store: store.keys.list())
    if as_json:
        say_json(found)
        return
    rows = (
        (key.name, key.prefix, key.project, _scopes(key), _state(key), when(key.created_at), when(key.last_used_at))
        for key in found
    )
    columns = ("NAME", "PREFIX", "PROJECT", "SCOPES", "STATE", "CREATED", "LAST USED")
    say_table(columns, rows, empty="there is no key; make one with `safelight keys create NAME`")


def revoke(
    key: Annotated[str, typer.Argument(help="Name or id of the key.")],
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a key useless, within seconds also at a running server."""
    revoked = with_store(existing_settings_of(config, data), lambda store: store.keys.revoke(key))
    say(f"key {revoked.name} ({revoked.prefix}...) is revoked")


def limit(
    key: Annotated[str, typer.Argument(help="Name or id of the key.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="Requests in any 60 seconds.")] = None,
    pixel_steps_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Height x width x steps x images in any 60 seconds.")
    ] = None,
    images_per_day: Annotated[int | None, typer.Option(min=0, help="Images asked for in a day (UTC).")] = None,
    max_queued_runs: Annotated[int | None, typer.Option(min=0, help="Runs that may wait at once.")] = None,
    max_open_runs: Annotated[int | None, typer.Option(min=0, help="Runs that may wait or be drawn at once.")] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.01, max=100.0, help="Share of a busy device beside other keys; 1 is usual.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=100, help="Whose runs go first; 0 is usual, higher goes before lower.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a key may use. What is not named stays as it is; 0 takes a limit away."""
    named = {
        "requests_per_minute": requests_per_minute,
        "pixel_steps_per_minute": pixel_steps_per_minute,
        "images_per_day": images_per_day,
        "max_queued_runs": max_queued_runs,
        "max_open_runs": max_open_runs,
    }
    changes: dict[str, Any] = {name: value or None for name, value in named.items() if value is not None}
    ranked = {"weight": weight, "priority": priority}
    changes |= {name: value for name, value in ranked.items() if value is not None}

    async def change(store: Store) -> Key:
        found = next((each for each in await store.keys.list() if _is_named(each, key)), None)
        return await store.keys.allow(key, replace(found.allowance if found else Allowance(), **changes))

    changed = with_store(existing_settings_of(config, data), change)
    if as_json:
        say_json(changed.allowance)
        return
    limits = [f"{name} {value}" for name, value in asdict(changed.allowance).items() if value is not None]
    say(f"key {changed.name} ({changed.prefix}...): {', '.join(limits)}")


def rotate(
    key: Annotated[str, typer.Argument(help="Name or id of the key.")],
    overlap_hours: Annotated[
        float,
        typer.Option(
            "--overlap-hours",
            min=0.0,
            max=MAX_OVERLAP_HOURS,
            help="How long the old key stays valid beside the new one.",
        ),
    ] = 24.0,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key that takes the place of another and print it, alone, on stdout. It is shown this once."""
    made, secret = with_store(
        existing_settings_of(config, data),
        lambda store: store.keys.rotate(key, overlap_seconds=overlap_hours * _HOUR_SECONDS),
    )
    if as_json:
        say_json({"key": secret, "id": made.id, "name": made.name, "project": made.project, "scopes": made.scopes})
    else:
        say(secret)
    explain(f"key {made.name} may {_scopes(made)}; the old one ends in {overlap_hours:g} h; keep the new one now")


def usage(
    key: Annotated[str | None, typer.Argument(help="Name or id of a key; all keys unless told.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Of how many days.")] = 30,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what keys have used: runs, finished images and device time, by deployment."""
    since = time.time() - days * DAY_SECONDS
    found = with_store(existing_settings_of(config, data), lambda store: store.ledger.usage(since=since))
    wanted = [each for each in found if key is None or key in {each.key, each.key_id}]
    if as_json:
        say_json(wanted)
        return
    rows = (
        (each.key, each.project, each.deployment, each.num_runs, each.num_images, f"{each.device_seconds:.1f} s")
        for each in wanted
    )
    columns = ("KEY", "PROJECT", "DEPLOYMENT", "RUNS", "IMAGES", "DEVICE TIME")
    say_table(columns, rows, empty=f"nothing was asked for in the last {days} days")


COMMANDS = {
    "create": create,
    "list": list_keys,
    "limit": limit,
    "rotate": rotate,
    "usage": usage,
    "revoke": revoke,
}


def _is_named(key: Key, name: str) -> bool:
    return name == key.id or (name == key.name and key.revoked_at is None)


def _scopes(key: Key) -> str:
    return ", ".join(sorted(key.scopes))


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {when(key.revoked_at)}"
    # Older releases took any end, also one that no calendar has; so far off it is as good as none.
    if key.expires_at is not None and key.expires_at <= time.time() + MAX_LIFETIME_DAYS * DAY_SECONDS:
        return f"{'expired' if key.expires_at <= time.time() else 'expires'} {when(key.expires_at)}"
    return "valid"

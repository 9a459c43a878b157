"""`keys create|list|revoke`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of, settings_of
from safelight.cli.output import explain, say, say_json, say_table, when
from safelight.keys import Key, Scope

HELP = "Make, list and revoke API keys."

_DAY_SECONDS = 86_400


def create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the machine that will hold it.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; may be repeated. Unset: predict. admin may do everything."),
    ] = None,
    project: Annotated[str, typer.Option(help="Keys see the runs of their own project only.")] = "default",
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", min=0.0, help="Refuse the key after this many days.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, alone, on stdout. It is shown this once."""
    scopes = frozenset(scope or (Scope.PREDICT,))
    expires_at = None if expires_days is None else time.time() + expires_days * _DAY_SECONDS
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


COMMANDS = {"create": create, "list": list_keys, "revoke": revoke}


def _scopes(key: Key) -> str:
    return ", ".join(sorted(key.scopes))


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {when(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= time.time() else 'expires'} {when(key.expires_at)}"
    return "valid"

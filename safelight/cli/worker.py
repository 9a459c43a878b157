"""`worker`: the workers of this machine, for a server whose door is on another."""

from __future__ import annotations

from typing import Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, settings_of
from safelight.cli.output import say
from safelight.config import require_shared_store
from safelight.logs import configure_logging
from safelight.tracing import check_installed


def worker(
    device: Annotated[
        list[str] | None, typer.Option(help="torch device; may be repeated. Unset: every GPU, else the CPU.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Draw what any door of the same PostgreSQL and bucket has queued. Stops cleanly on Ctrl+C or SIGTERM."""
    settings = settings_of(config, data, worker__devices=device or None)
    require_shared_store(settings)
    check_installed(settings.tracing)
    configure_logging(settings.log, process="worker")
    with_store(settings, lambda store: store.images.check())

    from safelight.supervisor import Supervisor

    raise typer.Exit(Supervisor(settings, announce=lambda devices: say(f"working on {devices}")).work())

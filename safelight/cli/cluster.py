"""`cluster`: a server on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, settings_of
from safelight.cli.output import say
from safelight.config import require_shared_store
from safelight.errors import ConfigError
from safelight.logs import configure_logging
from safelight.tracing import check_installed


def cluster(
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join. Unset: RAY_ADDRESS, one on this machine, else a new one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many. Unset: one for each GPU of the cluster, or one on a CPU.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Unset: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. Unset: 8000.")] = None,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve what is deployed on a Ray cluster: the door here, workers where Ray has room. Stops like `serve`."""
    settings = settings_of(config, data, server__host=host, server__port=port)
    require_shared_store(settings)
    check_installed(settings.tracing)
    configure_logging(settings.log, process="cluster")
    try:
        from safelight.cluster import run
    except ModuleNotFoundError as error:
        raise ConfigError("this needs Ray: pip install 'safelight[cluster]'") from error
    with_store(settings, lambda store: store.images.check())

    def announce(url: str, num_workers: int) -> None:
        say(f"serving at {url} with {num_workers} {'worker' if num_workers == 1 else 'workers'}")

    raise typer.Exit(run(settings, ray_address=address, num_workers=workers, announce=announce))

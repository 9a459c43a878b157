"""The tree of commands, and the one place where an error becomes a line on stderr and an exit status."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from safelight.cli import (
    cluster,
    configuration,
    convert,
    demo,
    deploying,
    doctor,
    generate,
    keys,
    predict,
    prune,
    pull,
    runs,
    serve,
    webhooks,
    worker,
)
from safelight.cli.output import fail
from safelight.errors import SafelightError
from safelight.version import __version__

COMMANDS = (
    serve.serve,
    worker.worker,
    cluster.cluster,
    deploying.deploy,
    deploying.deployments,
    deploying.undeploy,
    deploying.models,
    pull.pull,
    convert.convert,
    generate.generate,
    predict.predict,
    prune.prune,
    configuration.config,
    doctor.doctor,
    demo.demo,
)
"""Commands without a group, in the order of `--help`."""


class SafelightGroup(TyperGroup):
    """Turns the errors that Safelight and the operating system raise into one line; anything else is a
    bug and shows."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SafelightError as error:
            raise fail(error.message) from error
        except BrokenPipeError as error:
            raise typer.Exit(1) from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise fail(f"{error.strerror or error}{where}; see `safelight doctor`") from error


def build_app() -> typer.Typer:
    """Every command under its name."""
    app = typer.Typer(
        name="safelight",
        cls=SafelightGroup,
        callback=_root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in COMMANDS:
        app.command()(command)
    for name, group in (("keys", keys), ("runs", runs), ("webhooks", webhooks)):
        members = typer.Typer(help=group.HELP, no_args_is_help=True, rich_markup_mode=None)
        for member, function in group.COMMANDS.items():
            members.command(member)(function)
        app.add_typer(members, name=name)
    return app


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"safelight {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Safelight: a self-hosted text-to-image endpoint."""
